"""A crop around a mask, painted at the size of the result and put back into its picture."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.pipeline.given import inputs
from sdjax.pipeline.given.conditions import Pictures
from sdjax.pipeline.given.regions import Region
from sdjax.pipeline.plans.canvas import blended, check_pixels, eight_bit
from sdjax.pipeline.plans.request import Request
from sdjax.pipeline.steering.base import Steering


class Frame(NamedTuple):
    """What the painted crop of each image is put back into."""

    image: Pictures
    """At their own size."""
    mask: Pictures
    boxes: np.ndarray
    """int[images, 4]: left, top, right and bottom of the crop."""
    size: inputs.Size
    """That the crops are painted at."""

    def crops(
        self, name: str, pictures: Sequence, which: np.ndarray
    ) -> tuple[list[Image.Image], np.ndarray]:
        """What of other pictures lies where the crops do, at the size that these are painted at,
        and which of them each image takes.

        name: the argument that they came as. which: int[images], of `pictures`, which are of the
        whole image whatever their size.
        """
        pairs, first, of_pair = np.unique(
            np.stack([which, self.image.which]), axis=1, return_index=True, return_inverse=True
        )
        height, width = self.image.arrays.shape[1:3]
        made = []
        for picture, image in zip(pairs[0], first, strict=True):
            picture = pictures[picture]
            check_pixels(picture, "only_masked", name)
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)
            made.append(_fitted(picture.crop(self.boxes[image].tolist()), self.size))
        return made, of_pair.reshape(-1)

    def steered(self, control: Steering, which: np.ndarray) -> tuple[Steering, np.ndarray]:
        """What steers the crops: the same part of its pictures, and which of them each image takes.

        Pictures that are looked at as a whole stay as they are.
        """
        if control.acts == "references":
            return control, which
        pictures, which = self.crops("controls", control.picture, which)
        return dataclasses.replace(control, picture=pictures), which

    def regions(self, given: Sequence[Region], prompts: int) -> list[Region]:
        """The regions as they lie in the crops, a mask for each image."""
        total, made = len(self.boxes), []
        for region in given:
            which = inputs.chosen("a region's mask", len(region.mask), prompts, total)
            masks = [eight_bit(one) for one in region.mask]
            masks, which = self.crops("regions", masks, which)
            made.append(dataclasses.replace(region, mask=[masks[i] for i in which]))
        return made

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
        image, mask = asked.image[image], eight_bit(asked.mask[mask])
        check_pixels(image, "only_masked", "image")
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
        size,
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
