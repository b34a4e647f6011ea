"""Checks of the options of samplers."""

import numbers

import numpy as np

from sdjax.errors import SdjaxError


def check_order(order, highest=3):
    if order not in range(1, highest + 1):
        raise SdjaxError(f"order must be a whole number from 1 to {highest}, got {order!r}")


def check_eta(eta, most=np.inf):
    """Raises where the share of noise is not in 0 … `most`."""
    if not 0 <= eta <= most:
        wanted = "0 or more" if most == np.inf else f"between 0 and {most:g}"
        raise SdjaxError(f"eta must be {wanted}, got {eta}")


_NONE = type(None)
# Of options whose default does not tell what else they may be.
_KINDS = {"final": {str, float}, "lower_order_final": {bool, _NONE}}
_LISTS = ("timesteps", "sigmas", "without_corrector")
_WORDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text",
          _NONE: "None"}  # fmt: skip


def of_kind(name, value, defaults):
    """An option's value where it is of the kind of its defaults, as a plain number, bool or text.

    Whole numbers may be written as floats. A default of None stands for a number that is not given.
    """
    if np.ndim(value) == 0 and hasattr(value, "item"):
        value = value.item()
    if name in _LISTS:
        return _listed(name, value)
    kinds = {type(default) for default in defaults}
    kinds = _KINDS.get(name, kinds | {float} if kinds == {_NONE} else kinds)
    if isinstance(value, str | _NONE):
        if type(value) in kinds:
            return value
    elif isinstance(value, numbers.Real):
        if bool in kinds and value in (0, 1):
            return bool(value)
        finite = value - value == 0
        if int in kinds and finite and value == value // 1 and not isinstance(value, bool):
            return int(value)
        endless = value == value and any(default in (np.inf, -np.inf) for default in defaults)
        if float in kinds and (finite or endless) and not isinstance(value, bool):
            return float(value)
    wanted = " or ".join(word for kind, word in _WORDS.items() if kind in kinds)
    raise SdjaxError(f"{name} must be {wanted}, got {value!r}")


def _listed(name, value):
    """A list of numbers, a name of σ or None."""
    if value is None or (isinstance(value, str) and name == "sigmas"):
        return value
    try:
        given = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        given = np.array(np.nan)
    if given.ndim != 1 or isinstance(value, str) or not np.isfinite(given).all():
        kind = "a list of numbers, or a name" if name == "sigmas" else "a list of numbers"
        raise SdjaxError(f"{name} must be {kind}, got {value!r}")
    return value
