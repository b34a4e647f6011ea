"""Pictures of which a part is painted: softened masks, a crop around the mask, a larger canvas."""

import copy
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from sdjax.errors import SdjaxError
from sdjax.pipeline.given import inputs
from sdjax.pipeline.given.conditions import Pictures
from sdjax.pipeline.plans.request import Request

FEATHER = 32
"""Pixels of a picture, at most, over which what is painted beside it passes into it."""
GRAIN = 0.2
"""Standard deviation of the noise in what a canvas is filled with, of pixels in [-1, 1]."""


class Frame(NamedTuple):
    """What the painted crop of each image is put back into."""

    image: Pictures
    """At their own size."""
    mask: Pictures
    boxes: np.ndarray
    """int[images, 4]: left, top, right and bottom of the crop."""

    def pasted(self, pixels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The whole pictures [N, H, W, 3] of crops [N, h, w, 3] that were painted larger."""
        painted = self.image.of(numbers).copy()
        for whole, crop, (left, top, right, bottom) in zip(
            painted, pixels, self.boxes[numbers], strict=True
        ):
            if not np.isfinite(crop).all():  # which is told later, and is not hidden by 8 bits
                whole[:] = np.nan
                continue
            crop = Image.fromarray(np.uint8(np.round((crop + 1) * 127.5)))
            crop = _covering(crop, (bottom - top, right - left))
            whole[top:bottom, left:right] = 2 * (np.asarray(crop) / np.float32(255)) - 1
        return blended(painted, self.image.of(numbers), self.mask.of(numbers))


def blended(painted: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float32 [N, H, W, 3]: painted where the mask [N, H, W] is 1, and the image to the last bit
    where it is 0."""
    mask = mask[..., None]
    return np.where(mask > 0, mask * painted, 0) + (1 - mask) * image


def prepared(asked: Request) -> Request:
    """The request with its pictures on their canvas and its masks softened.

    Raises SdjaxError where the arguments do not go together.
    """
    for name in ("mask_blur", "only_masked"):
        if getattr(asked, name) is not None and asked.mask is None:
            raise SdjaxError(f"{name} is for a mask: give mask= too")
    for name in ("depth", "controls", "regions"):
        if asked.only_masked is not None and getattr(asked, name):
            raise SdjaxError(f"only_masked paints a crop, of which {name} know nothing: give one")
    if asked.extend is None and not asked.mask_blur:
        return asked
    asked = copy.copy(asked)
    if asked.mask_blur:
        asked.mask = [_eight_bit(one).filter(ImageFilter.GaussianBlur(asked.mask_blur))
                      for one in asked.mask]  # fmt: skip
    if asked.extend is not None:
        asked.image, asked.mask = _extended(asked)
    return asked


def _extended(asked: Request) -> tuple[list, list]:
    """Each image's picture on its larger canvas, and the mask of what is new."""
    if asked.image is None:
        raise SdjaxError("extend is for a picture: give image= too")
    for name in ("height", "width", "only_masked"):
        if getattr(asked, name) is not None:
            raise SdjaxError(f"extend says the size itself: leave {name} out")
    prompts, total = len(asked.prompt), asked.total
    which = inputs.chosen("image", len(asked.image), prompts, total)
    masks = asked.mask or [None]
    of_mask = inputs.chosen("mask", len(masks), prompts, total)
    images, painted = [], []
    for i, seed in enumerate(asked.seeds):
        image = asked.image[which[i]]
        _check_pixels(image, "extend")
        images.append(Image.fromarray(filled(np.asarray(image), asked.extend, int(seed))))
        painted.append(feathered(image.size[::-1], asked.extend, masks[of_mask[i]]))
    return images, painted


def filled(image: np.ndarray, extend: tuple[int, int, int, int], seed: int) -> np.ndarray:
    """A picture uint8 [H, W, 3] on its canvas: its edges go on, with grain from the seed."""
    left, top, right, bottom = extend
    made = np.pad(image, [(top, bottom), (left, right), (0, 0)], mode="edge")
    grain = np.random.RandomState(seed & 0xFFFFFFFF).standard_normal(made.shape)
    noisy = np.uint8(np.clip(np.round(made + 127.5 * GRAIN * grain), 0, 255))
    inside = np.s_[top : top + image.shape[0], left : left + image.shape[1]]
    noisy[inside] = image
    return noisy


def feathered(
    size: inputs.Size, extend: tuple[int, int, int, int], mask: Image.Image | np.ndarray | None
) -> np.ndarray:
    """float32 [H', W']: 1 beside a picture of this size, falling to 0 within it, and its own mask.

    It falls over `FEATHER` pixels, or a quarter of the side, along edges that are extended.
    """
    shares = np.zeros(size, np.float32)
    for axis, (before, after) in enumerate(((extend[1], extend[3]), (extend[0], extend[2]))):
        side = size[axis]
        feather = max(1, min(FEATHER, side // 4))
        inward = np.arange(side, dtype=np.float32)
        ramp = np.zeros(side, np.float32)
        for given, distance in ((before, inward), (after, inward[::-1])):
            if given:
                ramp = np.maximum(ramp, 1 - (distance + 1) / (feather + 1))
        shares = np.maximum(shares, ramp[:, None] if axis == 0 else ramp)
    if mask is not None:
        inputs.check_same_shape(mask, np.empty(size))
        shares = np.maximum(shares, inputs.resized("mask", mask, size))
    left, top, right, bottom = extend
    return np.pad(shares, [(top, bottom), (left, right)], constant_values=1)


def cropped(asked: Request, size: inputs.Size) -> tuple[Pictures, Pictures, Frame]:
    """Pictures and masks around what is masked, at the size that is painted, and their frame.

    Each crop has `asked.only_masked` pixels around its mask and, as far as the picture goes, the
    proportions of the size.
    """
    prompts, total = len(asked.prompt), asked.total
    given = [inputs.chosen(name, len(getattr(asked, name)), prompts, total)
             for name in ("image", "mask")]  # fmt: skip
    pairs, which = np.unique(np.stack(given), axis=1, return_inverse=True)
    images, masks, crops, boxes = [], [], [], []
    for image, mask in pairs.T:
        image, mask = asked.image[image], _eight_bit(asked.mask[mask])
        _check_pixels(image, "only_masked")
        inputs.check_same_shape(mask, image)
        if mask.size != image.size:
            mask = mask.resize(image.size, Image.Resampling.LANCZOS)
        boxes.append(box_around(np.asarray(mask), size, asked.only_masked))
        crops.append([_fitted(one.crop(boxes[-1]), size) for one in (image, mask)])
        images.append(inputs.resized("image", image, image.size[::-1]))
        masks.append(inputs.resized("mask", mask, mask.size[::-1]))
    if len({image.shape for image in images}) > 1:
        raise SdjaxError("only_masked takes pictures of one size: give others in other calls")
    which = which.reshape(-1)
    small = [np.stack([inputs.resized(name, pair[i], size) for pair in crops])
             for i, name in enumerate(("image", "mask"))]  # fmt: skip
    frame = Frame(
        Pictures(np.stack(images), which),
        Pictures(np.stack(masks), which),
        np.array(boxes)[which],
    )
    return Pictures(small[0], which), Pictures(small[1], which), frame


def box_around(mask: np.ndarray, size: inputs.Size, padding: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the crop of a mask [H, W], in the proportions of a size.

    Where it reaches over the picture's edge it is moved back, and cut where it is larger.
    """
    ends = []
    for axis in (1, 0):
        set_ = np.flatnonzero(mask.any(axis=axis))
        if not len(set_):
            raise SdjaxError("mask is black everywhere: paint white what is to be repainted")
        last = mask.shape[1 - axis]
        ends.append((max(int(set_[0]) - padding, 0), min(int(set_[-1]) + 1 + padding, last)))
    (top, bottom), (left, right) = ends
    wanted = size[1] / size[0]
    if (right - left) / (bottom - top) > wanted:
        top, bottom = _widened(top, bottom, int((right - left) / wanted), mask.shape[0])
    else:
        left, right = _widened(left, right, int((bottom - top) * wanted), mask.shape[1])
    return left, top, right, bottom


def _widened(first: int, last: int, length: int, limit: int) -> tuple[int, int]:
    more = length - (last - first)
    first, last = first - more // 2, last + more - more // 2
    over = max(last - limit, 0)
    first, last = first - over, last - over
    return max(first, 0), min(last - min(first, 0), limit)


def _fitted(image: Image.Image, size: inputs.Size) -> Image.Image:
    """The whole image, in its proportions, on one of this size; its edges fill what is left."""
    height, width = size
    small = _scaled(image, size, min)
    left, top = width // 2 - small.width // 2, height // 2 - small.height // 2
    pixels = np.asarray(small)
    space = [(top, height - top - small.height), (left, width - left - small.width)]
    return Image.fromarray(np.pad(pixels, space + [(0, 0)] * (pixels.ndim - 2), mode="edge"))


def _covering(image: Image.Image, size: inputs.Size) -> Image.Image:
    """The image, in its proportions, over all of one of this size, its middle."""
    height, width = size
    large = _scaled(image, size, max)
    left, top = large.width // 2 - width // 2, large.height // 2 - height // 2
    return large.crop((left, top, left + width, top + height))


def _scaled(image: Image.Image, size: inputs.Size, which) -> Image.Image:
    """The image in its proportions: the smaller or the larger of those that touch two sides."""
    height, width = size
    sizes = (
        (width, image.height * width // image.width),
        (image.width * height // image.height, height),
    )
    return image.resize(which(sizes), Image.Resampling.LANCZOS)


def _eight_bit(mask: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(mask, np.ndarray):
        return Image.fromarray(np.uint8(np.round(mask * 255)))
    return mask


def _check_pixels(image, name: str) -> None:
    if isinstance(image, np.ndarray):
        raise SdjaxError(f"{name} is for pictures of 8 bits: give image as uint8 or a PIL image")
