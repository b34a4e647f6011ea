"""What is computed on the host, with NumPy, says so where it is given traced values."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from sdjax.errors import SdjaxError

_TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def on_the_host(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`function` of numbers, with one line instead of JAX's error where one of them is traced.

    It may be called while jit, grad or vmap trace, of whose values it then gives constants.
    """

    @functools.wraps(function)
    def called(*arguments, **named):
        try:
            return function(*arguments, **named)
        except (*_TRACED, SdjaxError) as error:
            # The name that was called is told, not that of a function which it calls in turn.
            cause = error.__cause__ if isinstance(error, SdjaxError) else error
            if not isinstance(cause, _TRACED):
                raise
            raise SdjaxError(
                f"{function.__name__} computes on the host and needs numbers, but one of its "
                "arguments is traced by jit, vmap or grad: call it outside, and give the traced "
                "function what it returns"
            ) from cause

    return called
