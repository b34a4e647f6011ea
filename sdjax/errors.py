"""The one exception that sdjax raises for input it cannot use, and the commonest checks."""

import math
import typing


class SdjaxError(ValueError):
    """One line that names what was expected, what came, and what to do.

    Names out of a file may hold line breaks or a terminal's control characters: spaces here.
    """

    def __init__(self, message: object):
        text = str(message)
        if not text.isprintable():
            text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        super().__init__(text)


def check_at_least(least, config, *names):
    """SdjaxError that names the first of these fields of `config` whose value is below `least`."""
    for name in names:
        if getattr(config, name) < least:
            raise SdjaxError(f"{name} must be at least {least}, got {getattr(config, name)}")


def check_choices(config):
    """SdjaxError that names the first field of a dataclass whose value its Literal lacks."""
    for name, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is typing.Literal:
            known, value = typing.get_args(kind), getattr(config, name)
            if value not in known:
                raise SdjaxError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_finite(**numbers):
    """SdjaxError that names the first of these numbers that is infinite or not a number."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise SdjaxError(f"{name} must be a finite number, got {value}")
