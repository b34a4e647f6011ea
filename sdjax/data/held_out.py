"""Which pictures are kept out of training to judge it by."""

import hashlib
from collections.abc import Sequence

import numpy as np

from sdjax.errors import SdjaxError


def held_out(names: Sequence[str], share: float) -> np.ndarray:
    """bool [N]: which of N items are kept out, for their names; items of one name go together.

    Of the n different names, share · n are kept out, rounded, one at least: those whose digests
    (BLAKE2b) come first. So neither order nor a seed matters, and other items matter little.
    Raises SdjaxError where nothing is left to train on.
    """
    different = sorted(set(names), key=lambda name: hashlib.blake2b(name.encode()).digest())
    count = max(1, round(share * len(different)))
    if count >= len(different):
        raise SdjaxError(
            f"validation keeps {count} of {len(different)} pictures out, and leaves none to train "
            "on: lower data.validation, or give data.validation_source"
        )
    chosen = set(different[:count])
    return np.array([name in chosen for name in names])
