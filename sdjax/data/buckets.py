"""Aspect-ratio buckets by sd-scripts' rule: sizes of about one area that pictures are fitted to."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError, check_at_least


class Fit(NamedTuple):
    """Where a picture goes; sizes are (width, height) in pixels."""

    bucket: tuple[int, int]
    """What is trained on."""
    resized: tuple[int, int]
    """What the picture is resized to before its middle is cut out."""

    @property
    def crop(self) -> tuple[int, int]:
        """(left, top) of the bucket in the resized picture."""
        return tuple((whole - part) // 2 for whole, part in zip(self.resized, self.bucket))


@dataclass(frozen=True)
class Buckets:
    """The sizes that pictures are fitted to.

    Each has at most the area of `image_size` squared and sides that are multiples of `step`. A
    picture goes to the size of the nearest ratio of its sides, the first of equally near ones,
    unless its own size is one of them.
    """

    image_size: int
    smallest: int = 256
    """Shortest side."""
    largest: int = 1024
    """Longest side."""
    step: int = 64
    enlarge: bool = True
    """Whether small pictures are enlarged; otherwise they are cut to multiples of `step`."""

    def __post_init__(self):
        check_at_least(1, self, "step", "image_size", "smallest")
        if self.largest < max(self.image_size, self.smallest):
            raise SdjaxError(
                f"the largest side of a bucket must be at least image_size {self.image_size} and "
                f"the smallest side {self.smallest}, got {self.largest}"
            )
        if self.image_size < self.step:
            raise SdjaxError(
                f"buckets of image_size {self.image_size} need a step of at most that, got "
                f"{self.step}"
            )

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """All (width, height), sorted."""
        area, step = self.image_size**2, self.step
        square = self.image_size // step * step
        found = {(square, square)}
        for side in range(self.smallest, self.largest + 1, step):
            other = min(self.largest, area // side // step * step)
            if other >= self.smallest:
                found |= {(side, other), (other, side)}
        return sorted(found)

    def fit(self, width: int, height: int) -> Fit:
        """Where a picture of this size goes; SdjaxError where it is too small for any bucket."""
        ratio = width / height
        if not self.enlarge:
            return self._cut(width, height, ratio)
        bucket = (width, height)
        if bucket not in self.sizes:
            ratios = np.array([w / h for w, h in self.sizes])
            bucket = self.sizes[int(np.abs(ratios - ratio).argmin())]
        # What is wider than its bucket is fitted by its height.
        scale = bucket[1] / height if ratio > bucket[0] / bucket[1] else bucket[0] / width
        return Fit(bucket, (_rounded(width * scale), _rounded(height * scale)))

    def _cut(self, width, height, ratio):
        resized = width, height
        if width * height > self.image_size**2:
            ideal = math.sqrt(self.image_size**2 * ratio)
            wide, high = self._down(ideal), self._down(self.image_size**2 / ideal)
            if not (high and self._down(wide / ratio)):
                raise self._too_small(width, height)
            by_width = abs(wide / self._down(wide / ratio) - ratio)
            by_height = abs(self._down(high * ratio) / high - ratio)
            resized = (wide, _rounded(wide / ratio)) if by_width < by_height else (
                _rounded(high * ratio), high)  # fmt: skip
        bucket = tuple(side - side % self.step for side in resized)
        if not all(bucket):
            raise self._too_small(width, height)
        return Fit(bucket, resized)

    def _too_small(self, width, height):
        return SdjaxError(
            f"a picture of {width}x{height} is too small for a bucket, whose sides are multiples "
            f"of {self.step}: enlarge, or leave it out"
        )

    def _down(self, value):
        """The multiple of the step at or below a value that is rounded first."""
        whole = _rounded(value)
        return whole - whole % self.step


def _rounded(value: float) -> int:
    return int(value + 0.5)


def fitted(image: np.ndarray, fit: Fit) -> np.ndarray:
    """uint8 [height, width, 3] resized and cut as a `Fit` says: uint8 of its bucket's size."""
    if image.shape[1::-1] != fit.resized:
        image = np.asarray(Image.fromarray(image).resize(fit.resized, Image.Resampling.LANCZOS))
    left, top = fit.crop
    width, height = fit.bucket
    return image[top:top + height, left:left + width]
