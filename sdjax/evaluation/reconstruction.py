"""How well an autoencoder gives pictures back."""

import numpy as np

from sdjax.errors import SdjaxError


def psnr(images, others):
    """Peak signal-to-noise ratio of each pair, in dB: float64 [N]; infinite where equal.

    Both [N, ...] of one shape and dtype, uint8 or float in [-1, 1], the range's width being the
    peak.
    """
    images, others = np.asarray(images), np.asarray(others)
    if images.shape != others.shape or images.dtype != others.dtype:
        raise SdjaxError(f"pairs of one shape and dtype expected, got {images.dtype} {images.shape} "
                         f"and {others.dtype} {others.shape}")
    peak = 255.0 if images.dtype == np.uint8 else 2.0
    error = np.square(images.astype(np.float64) - others.astype(np.float64))
    error = error.reshape(len(images), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)
