"""Pictures and masks that a caller gives, as arrays of the size that a model works at."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError

Picture = Image.Image | np.ndarray | str | os.PathLike
"""A PIL image, a path, uint8 [H, W, 3], or floats [H, W, 3] in [-1, 1]; a mask or a map of depths
has no last axis, the floats of a mask lie in [0, 1] and those of depths anywhere."""

Pictures = Picture | Sequence[Picture]
Size = tuple[int, int]
"""Height and width in pixels."""

_WANTED = {"RGB": "[H, W, 3]", "L": "[H, W]", "F": "[H, W]"}
_TINGE = 8  # levels by which the channels of a grey picture may differ, as in JPEGs
_RANGE = {"RGB": (-1, 1), "L": (0, 1), "F": (-np.inf, np.inf)}


def picture_list(mode: str):
    """The check of an argument that is one or several pictures, as a list of PIL images of `mode`
    or of float32 arrays.

    mode: "RGB", "L" for masks, "F" for depths. Files and PIL images are taken as a viewer shows
    them, depths with all their bits.
    """
    axes = _WANTED[mode].count(",") + 1

    def check(name, value):
        of_colours = mode != "RGB" and np.shape(value)[-1:] in ((1,), (3,), (4,))
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            several = list(value)
        elif getattr(value, "ndim", 0) == axes + 1 and not of_colours:
            several = list(np.asarray(value))
        else:
            return [_picture(name, value, mode)]
        if not several:
            raise SdjaxError(f"{name} is an empty list: give at least one picture")
        return [_picture(f"{name} {i}", one, mode) for i, one in enumerate(several)]

    return check


def _picture(name: str, value, mode: str) -> Image.Image | np.ndarray:
    if isinstance(value, str | os.PathLike):
        from sdjax.data.pictures import open_picture  # which loads what data loaders need

        if mode != "F":
            return open_picture(value, f"{name} {os.fspath(value)}", mode)
        name, value = f"{name} {os.fspath(value)}", _loaded(name, value)
    elif isinstance(value, Image.Image) and mode != "F":
        from sdjax.data.pictures import open_picture

        return open_picture(value, name, mode)
    if mode != "RGB" and isinstance(value, np.ndarray) and value.shape[2:] in ((3,), (4,)):
        if value.dtype == np.uint8:
            return _picture(name, Image.fromarray(value), mode)
    array = np.asarray(_grey(name, value) if mode == "F" else value)
    if mode != "RGB" and array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != _WANTED[mode].count(",") + 1 or not array.size or (
        mode == "RGB" and array.shape[-1] != 3
    ):  # fmt: skip
        came = f"an array of shape {array.shape}" if array.ndim else repr(value)[:80]
        raise SdjaxError(
            f"{name} must be a PIL image, a path, or an array {_WANTED[mode]}, got {came}"
        )
    if mode == "F" and np.issubdtype(array.dtype, np.number):
        array = array.astype(np.float32)
    if array.dtype in (bool, np.uint8):
        return Image.fromarray(array.astype(np.uint8) * (255 if array.dtype == bool else 1))
    low, high = _RANGE[mode]
    if not np.issubdtype(array.dtype, np.floating):
        raise SdjaxError(f"{name} must be uint8, or floats in {low} … {high}, got {array.dtype}")
    array = array.astype(np.float32)
    if not (np.isfinite(array).all() and array.min() >= low and array.max() <= high):
        raise SdjaxError(
            f"{name} must be finite floats in {low} … {high}, got {array.min():g} … {array.max():g}"
        )
    return array


def _grey(name: str, value):
    """A map of depths with all its bits; of a picture in colours its greys, if it has no others."""
    deep = isinstance(value, Image.Image) and value.mode[:1] in ("I", "F")
    if deep or not isinstance(value, Image.Image):
        return value
    from sdjax.data.pictures import open_picture

    shown = open_picture(value, name)
    pixels = np.asarray(shown, np.float32)
    if (pixels.max(-1) - pixels.min(-1)).mean() > _TINGE:
        raise SdjaxError(
            f"{name} is in colours, and nothing says which of them is near: expected greys, of "
            "which lighter is nearer"
        )
    return shown.convert("L")


def _loaded(name: str, path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError) as error:
        from sdjax.data.pictures import why_unreadable

        raise SdjaxError(f"{name} {os.fspath(path)}: {why_unreadable(path, error)}") from error


def check_same_shape(mask, image) -> None:
    """SdjaxError where a mask has other proportions than its picture."""
    (height, width), (high, wide) = size_of(mask), size_of(image)
    if abs(height * wide - width * high) > max(height * wide, width * high) / 50:
        raise SdjaxError(
            f"mask has the sides {width}x{height}, the picture {wide}x{high}: expected a mask of "
            "the picture's proportions"
        )


def size_of(picture: Image.Image | np.ndarray) -> Size:
    """Height and width in pixels."""
    return picture.size[::-1] if isinstance(picture, Image.Image) else picture.shape[:2]


def fitting(size: Size, factor: int) -> Size:
    """The largest size not above this one that a model with latents of `factor` pixels takes."""
    return tuple(max(factor, side - side % factor) for side in size)


def resized(
    name: str,
    picture: Image.Image | np.ndarray,
    size: Size,
    way: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """float32 [H, W, 3] in [-1, 1], or [H, W] in [0, 1], of this size.

    PIL images are resized with Lanczos' filter, as diffusers does, or another; arrays of floats are
    not.
    """
    if isinstance(picture, np.ndarray):
        if picture.shape[:2] != tuple(size):
            raise SdjaxError(
                f"{name} as floats must have the size of the result, {size[1]}x{size[0]}, got "
                f"{picture.shape[1]}x{picture.shape[0]}: give uint8 or a PIL image to have it "
                "resized"
            )
        return picture
    if size_of(picture) != tuple(size):
        picture = picture.resize(size[::-1], way)
    pixels = np.asarray(picture)
    shares = pixels.astype(np.float32) / np.float32(255)
    return 2 * shares - 1 if pixels.ndim == 3 else shares


def chosen(name: str, count: int, prompts: int, total: int) -> np.ndarray:
    """int[total]: which of `count` pictures each of the images takes.

    There may be one, one a prompt, or one an image.
    """
    if count == total:
        return np.arange(total)
    if count == prompts:
        return np.arange(total) // (total // prompts)
    if count == 1:
        return np.zeros(total, int)
    raise SdjaxError(
        f"{name} must be one, one a prompt ({prompts}) or one an image ({total}), got {count}"
    )
