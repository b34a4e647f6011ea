"""Edges as Canny finds them (1986, IEEE TPAMI 8.6), with the numbers of OpenCV's implementation."""

import numpy as np
from PIL import Image

from sdjax.data.pictures import open_picture
from sdjax.errors import SdjaxError

_SHIFT = 15
_TAN = round((2**0.5 - 1) * 2**_SHIFT)  # of 22.5 degrees, as OpenCV has it in whole numbers


def canny(picture, low: float = 100, high: float = 200) -> Image.Image:
    """The edges of a picture, white on black: what `cv2.Canny(rgb, low, high)` gives, in RGB.

    picture: a path, an open file or a PIL image. low, high: of the gradient |d/dx| + |d/dy| by
    Sobel's 3x3 operators, in the channel where it is largest: an edge goes on where it is above
    `low`, and has somewhere more than `high`. 100 and 200 are those that ControlNets and
    T2I-Adapters for edges were trained with. Raises SdjaxError for what is no picture.
    """
    from scipy import ndimage  # which takes long to import

    if not 0 <= low <= high:
        raise SdjaxError(f"low and high must be in order, from 0 on, got {low:g} and {high:g}")
    x, y = _gradient(np.asarray(open_picture(picture, "picture")).astype(np.int32))
    strength = np.abs(x) + np.abs(y)
    ridge = _is_ridge(strength, x, y) & (strength > np.floor(low))
    pieces, _ = ndimage.label(ridge, structure=np.ones((3, 3)))
    kept = np.unique(pieces[ridge & (strength > np.floor(high))])
    edges = np.isin(pieces, kept) & ridge
    return Image.fromarray(np.uint8(255 * edges)).convert("RGB")


def _gradient(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d/dx and d/dy [H, W] of int [H, W, C], each place's in the channel where it is steepest."""
    from scipy import ndimage

    smooth, slope = [1, 2, 1], [-1, 0, 1]
    along = [
        ndimage.correlate1d(
            ndimage.correlate1d(pixels, slope, axis, mode="nearest"), smooth, other, mode="nearest"
        )
        for axis, other in ((1, 0), (0, 1))
    ]
    steepest = (np.abs(along[0]) + np.abs(along[1])).argmax(-1)[..., None]
    return tuple(np.take_along_axis(one, steepest, -1)[..., 0] for one in along)


def _is_ridge(strength: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the strength is larger than at the two neighbours across the edge; bool [H, W].

    The direction is rounded to 45 degrees. Of two equal neighbours the one further on is kept.
    """
    around = np.pad(strength, 1)

    def at(down, right):
        rows, columns = strength.shape
        return around[1 + down : 1 + down + rows, 1 + right : 1 + right + columns]

    across, up = np.abs(x) * _TAN, np.abs(y) << _SHIFT
    level = up < across
    steep = up > across + (np.abs(x) << (_SHIFT + 1))
    falling = (x ^ y) < 0
    beside = [(at(0, -1), at(0, 1)), (at(-1, 0), at(1, 0)), (at(-1, 1), at(1, -1)),
              (at(-1, -1), at(1, 1))]  # fmt: skip
    kinds = [level, steep, falling]
    before, after = (np.select(kinds, [pair[i] for pair in beside[:3]], beside[3][i]) for i in (0, 1))
    return (strength > before) & np.where(level | steep, strength >= after, strength > after)
