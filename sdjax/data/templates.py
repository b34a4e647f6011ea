"""Tells the shape and size of an object by comparison with drawn ones."""
import functools

import numpy as np
from scipy import ndimage

from sdjax.data.scenes import SHAPES, SIZES
from sdjax.data.shapes import sprite

_FIT = 0.3  # the largest squared misfit, relative to the shape, that still counts as that shape
_WINDOW = 40  # holds a large object with room around it
_BLURS = (0.0, 0.8, 1.5)


def match(covers):
    """The drawn shapes that coverage maps resemble most.

    Args:
      covers: float maps [height, width] in 0…1, each of one object.

    Returns:
      For each map (size, shape, centre): names of `SIZES` and `SHAPES`, or None and None where no
      shape comes near; and the centre of the bounding box, float [2] (y, x) in pixels of the map.
    """
    if not covers:
        return []
    shapes, powers, centres, kinds = _templates()
    windows = np.zeros((len(covers), _WINDOW, _WINDOW), np.float32)
    starts = np.zeros((len(covers), 2), int)
    for n, cover in enumerate(covers):
        starts[n] = _centred(cover, windows[n])
    flat = windows.reshape(len(windows), -1)
    misfit = powers - 2 * flat @ shapes.T
    best = misfit.argmin(1)
    misfit = (misfit[np.arange(len(best)), best] + (flat**2).sum(1)) / powers[best]
    return [
        (*(kinds[b] if m <= _FIT else (None, None)), start + centres[b])
        for b, m, start in zip(best, misfit, starts)
    ]


def _centred(cover, window):
    """Copies a map into a window with its centre of mass in the middle; returns where it began."""
    total = max(cover.sum(), 1e-6)
    middle = [(cover.sum(1 - axis) @ np.arange(cover.shape[axis])) / total for axis in (0, 1)]
    start = np.floor(np.array(middle) + 0.5).astype(int) - _WINDOW // 2
    low, high = np.maximum(start, 0), np.minimum(start + _WINDOW, cover.shape)
    target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start))
    window[target] = cover[low[0] : high[0], low[1] : high[1]]
    return start


@functools.cache
def _templates():
    """Every size and shape, at quarter pixels and several blurs.

    Returns their windows float [k, 1600], the windows' powers [k], the centres of the bounding
    boxes in the windows [k, 2] (y, x), and (size, shape) for each.
    """
    windows, centres, kinds = [], [], []
    for size in SIZES:
        for shape in SHAPES:
            for right, down in np.ndindex(4, 4):
                for blur in _BLURS:
                    cover = np.pad(sprite(shape, SIZES[size], right, down)[..., 0], 6)
                    middle = len(cover) / 2 - 0.5 + np.array([down, right]) / 4
                    cover = ndimage.gaussian_filter(cover, blur) if blur else cover
                    window = np.zeros((_WINDOW, _WINDOW), np.float32)
                    centres.append(middle - _centred(cover, window))
                    windows.append(window.ravel())
                    kinds.append((size, shape))
    windows = np.stack(windows)
    return windows, (windows**2).sum(1), np.stack(centres), kinds
