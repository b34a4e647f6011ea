"""Pictures of which a part is painted: softened masks, and a larger canvas."""

import copy

import numpy as np
from PIL import Image, ImageFilter

from sdjax.errors import SdjaxError
from sdjax.pipeline.given import inputs
from sdjax.pipeline.plans.request import Request

FEATHER = 32
"""Pixels of a picture, at most, over which what is painted beside it passes into it."""
GRAIN = 0.2
"""Standard deviation of the noise in what a canvas is filled with, of pixels in [-1, 1]."""


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
    if asked.extend is None and not asked.mask_blur:
        return asked
    asked = copy.copy(asked)
    if asked.mask_blur:
        asked.mask = [eight_bit(one).filter(ImageFilter.GaussianBlur(asked.mask_blur))
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
        check_pixels(image, "extend", "image")
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


def eight_bit(mask: Image.Image | np.ndarray) -> Image.Image:
    """A mask, of floats in [0, 1] too, as a picture."""
    if isinstance(mask, np.ndarray):
        return Image.fromarray(np.uint8(np.round(mask * 255)))
    return mask


def check_pixels(image, name: str, what: str) -> None:
    """SdjaxError for floats as the argument `what`, where the argument `name` takes 8 bits."""
    if isinstance(image, np.ndarray):
        raise SdjaxError(f"{name} is for pictures of 8 bits: give {what} as uint8 or a PIL image")
