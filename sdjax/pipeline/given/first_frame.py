"""The picture that a clip moves: what a model of such clips is shown and told of it."""

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.pipeline.given.conditions import interpolation

FPS, MOTION_BUCKET, NOISE = 7, 127, 0.02
"""Frames a second, amount of motion, and noise in the picture, where a request says nothing."""
STEPS, FIRST_GUIDANCE_SCALE = 25, 1.0
ARGUMENTS = ("fps", "motion_bucket", "noise_augmentation")
# What such a model does not take, with what is there where it is not given.
_NOT_TAKEN = {
    "negative_prompt": None, "prompt_2": None, "negative_prompt_2": None, "controls": [],
    "regions": [], "clip_skip": 0, "windows": None, "frame_windows": None, "tile": None,
}  # fmt: skip


def check(asked) -> None:
    """SdjaxError for what a model that moves a picture does not take."""
    if any(asked.prompt):
        raise SdjaxError("this model moves a picture and reads no prompt: leave prompt out")
    for name, nothing in _NOT_TAKEN.items():
        given = getattr(asked, name)
        if given is not None and (list(given) if isinstance(nothing, list) else given) != nothing:
            raise SdjaxError(f"this model moves a picture and takes no {name}: leave it out")


def told(asked, branches: int) -> np.ndarray:
    """float32 [branches, 3]: frames a second less one, as it was trained, motion, and noise."""
    fps, motion, noise = (
        default if getattr(asked, name) is None else getattr(asked, name)
        for name, default in zip(ARGUMENTS, (FPS, MOTION_BUCKET, NOISE), strict=True)
    )
    return np.tile(np.float32([fps - 1, motion, noise]), (branches, 1))


def for_clip(picture: Image.Image | np.ndarray, side: int) -> np.ndarray:
    """The whole picture in CLIP's units, float32 [side, side, 3], as diffusers' pipeline has it.

    picture: PIL, or floats in [-1, 1]. It is blurred as far as it is made smaller, then
    interpolated (bicubic) from corner to corner.
    """
    from sdjax.data.clip_picture import MEAN, STD  # which loads what data loaders need

    if isinstance(picture, Image.Image):
        picture = 2 * (np.asarray(picture.convert("RGB"), np.float32) / np.float32(255)) - 1
    rows, columns = (antialiased(given, side) for given in picture.shape[:2])
    small = np.einsum("hi,ijc,wj->hwc", rows, picture, columns)
    return np.float32(((small + 1) / 2 - MEAN) / STD)


def antialiased(given: int, wanted: int) -> np.ndarray:
    """Weights [wanted, given] along a side: a Gaussian blur, its edges reflected, then bicubic."""
    sigma = max((given / wanted - 1) / 2, 0.001)
    size = int(max(4 * sigma, 3))
    size += 1 - size % 2
    offsets = np.arange(size) - size // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    blur = np.zeros((given, given))
    places = np.arange(given)
    for offset, weight in zip(offsets, kernel / kernel.sum(), strict=True):
        other = np.abs(places + offset)
        other = np.where(other < given, other, 2 * (given - 1) - other)
        np.add.at(blur, (places, other.clip(0)), weight)
    return interpolation(given, wanted, "bicubic", corners=True) @ blur
