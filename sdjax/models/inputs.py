"""Checks of the arrays that networks are given."""

import jax.numpy as jnp

from sdjax.errors import SdjaxError

OF_PIXELS = ": bytes x become x / 127.5 - 1"


def check_floats(advice: str = "", **arrays) -> None:
    """SdjaxError that names the first of these that is no array of floats; None is passed over.

    A picture in 0 … 255 would otherwise go in as if it were one in -1 … 1. advice: ends the line.
    """
    _check(jnp.floating, "floating-point numbers", advice, arrays)


def check_integers(**arrays) -> None:
    """SdjaxError that names the first of these that is no array of integers; None is passed over."""
    _check(jnp.integer, "integers", "", arrays)


def _check(kind, wanted: str, advice: str, arrays) -> None:
    for name, array in arrays.items():
        found = getattr(array, "dtype", type(array).__name__)
        if array is not None and not (hasattr(array, "ndim") and jnp.issubdtype(found, kind)):
            raise SdjaxError(f"{name}: expected an array of {wanted}, got {found}{advice}")
