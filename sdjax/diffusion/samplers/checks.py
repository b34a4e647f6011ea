"""Checks of the options that several samplers share."""

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
