"""Checks of single arguments. Each takes a name and a value, and gives the value as it is used from
there on, or raises an SdjaxError that names the argument, what was expected and what came.
"""

import math
import numbers
from collections.abc import Callable, Sequence

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.text.tokenizer import valid

Check = Callable[[str, object], object]
_SHOWN = 100  # characters of a value in a message


def refuse(name: str, expected: str, value: object):
    """Raises the line about an argument of the wrong kind."""
    text = repr(value)
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
    raise SdjaxError(f"{name} must be {expected}, got {text}")


def plain_number(value: object) -> int | float | None:
    """A Python number of one of Python, NumPy or JAX; None of anything else, truth values too."""
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
        value = value.item() if hasattr(value, "item") else None
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def whole(least: int = 0) -> Check:
    """Whole numbers from `least` on, also as floats."""

    def check(name, value):
        number = plain_number(value)
        if number is None or number in (math.inf, -math.inf) or number != number // 1:
            refuse(name, "a whole number", value)
        if number < least:
            raise SdjaxError(f"{name} must be at least {least}, got {number}")
        return int(number)

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Finite numbers in low … high."""

    def check(name, value):
        given = plain_number(value)
        if given is None or not math.isfinite(given):
            refuse(name, "a finite number", value)
        if not low <= given <= high:
            wanted = f"lie in {low:g} … {high:g}" if high < math.inf else f"be at least {low:g}"
            raise SdjaxError(f"{name} must {wanted}, got {given:g}")
        return float(given)

    return check


def pair(least: int = 0) -> Check:
    """Two whole numbers from `least` on: height and width, or top and left."""
    each = whole(least)

    def check(name, value):
        if np.shape(value) != (2,) or isinstance(value, str | bytes):
            refuse(name, "two whole numbers, the vertical one first", value)
        return tuple(each(name, one) for one in value)

    return check


def sides(name: str, value: object) -> tuple[int, int, int, int]:
    """Pixels at the left, top, right and bottom: four whole numbers, not all of them 0."""
    if np.shape(value) != (4,) or isinstance(value, str | bytes):
        refuse(name, "four whole numbers of pixels: left, top, right, bottom", value)
    made = tuple(whole()(name, one) for one in value)
    if not any(made):
        raise SdjaxError(f"{name} is 0 on all sides: leave it out, or name a side's pixels")
    return made


def number_list(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number in low … high, or several, as a list."""
    one = number(low, high)

    def check(name, value):
        if plain_number(value) is None and not isinstance(value, str) and np.ndim(value) == 1:
            if not len(value):
                raise SdjaxError(f"{name} is an empty list: give at least one")
            return [one(name, single) for single in value]
        return [one(name, value)]

    return check


def text(name: str, value: object) -> str:
    """Unicode text."""
    if not isinstance(value, str):
        refuse(name, "text", value)
    try:
        valid(value)
    except SdjaxError as error:
        raise SdjaxError(f"{name}: {error}") from error
    return str(value)


def texts(name: str, value: object) -> list[str]:
    """A text, or a sequence of at least one, as a list."""
    if isinstance(value, str):
        return [text(name, value)]
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, bytes):
        refuse(name, "text, or a list of texts", value)
    if np.ndim(value) == 0 or not len(value):
        raise SdjaxError(f"{name} is an empty list: give at least one")
    return [text(name, one) for one in value]


def choice(*known: str) -> Check:
    """One of these names."""

    def check(name, value):
        if not isinstance(value, str) or value not in known:
            refuse(name, f"{', '.join(known[:-1])} or {known[-1]}", value)
        return value

    return check


def array(name: str, value: object) -> np.ndarray:
    """float32 of anything that makes an array of finite numbers."""
    try:
        made = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        refuse(name, "an array of numbers", value)
    if not np.isfinite(made).all():
        raise SdjaxError(f"{name} must be finite numbers, some are not")
    return made


def switch(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        refuse(name, "True or False", value)
    return bool(value)


def switch_or_function(name: str, value: object):
    """True, False, or something that can be called."""
    if not isinstance(value, bool | np.bool_) and not callable(value):
        refuse(name, "True, False or a function", value)
    return value


def optional(check: Check) -> Check:
    """None, or what another check takes."""
    return lambda name, value: None if value is None else check(name, value)
