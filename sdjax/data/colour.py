"""Colours of pictures brought to sRGB, from what their files say of them."""
import functools
import io
import warnings

import numpy as np
from PIL import Image, ImageCms

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's space -> what it describes
_CMS_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
_SRGB_GAMMA = 1 / 2.2  # in a gAMA chunk this stands for sRGB's curve, as a power comes near it
_NEAR = 0.05  # differences of gamma below this share are none
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # red, green, blue as CIE x, y
_D65 = (0.3127, 0.3290)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)  # XYZ to the responses that an eye adapts, in Lam's Bradford transform


def to_srgb(image: Image.Image, info: dict, name: str) -> Image.Image:
    """An image of mode L, RGB, CMYK or LAB as RGB, or L, in sRGB.

    An ICC profile in `info` (what Pillow read beside the pixels) counts first, then a PNG's word
    that it is sRGB, then its gamma and primaries where it has both, as in browsers. What says
    nothing is sRGB, or CMYK of ideal inks. A profile that cannot be used is told in a warning with
    `name`, and then the picture is shown as if it had none.
    """
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _from_lab())
    profile = info.get("icc_profile", b"")
    if profile:
        return _by_profile(image, profile, name)
    if profile is None:  # Pillow's word for one that does not decompress
        warnings.warn(f"{name}: its colour profile is broken; taken as sRGB", stacklevel=2)
    elif "gamma" in info and "chromaticity" in info and "srgb" not in info:
        return _by_primaries(image.convert("RGB"), info["gamma"], info["chromaticity"], name)
    return image.convert("RGB") if image.mode == "CMYK" else image


def _by_profile(image, profile, name):
    try:
        space, is_srgb = _described(profile)
        mode = _MODES.get(space)
        if image.mode == "L" and mode == "RGB":
            image = image.convert("RGB")
        if mode != image.mode:
            raise ValueError(f"it describes {space.strip()}, the picture is {image.mode}")
        return image if is_srgb else ImageCms.applyTransform(image, _transform(profile, mode))
    except _CMS_ERRORS as error:
        warnings.warn(
            f"{name}: its colour profile cannot be used ({error}); taken as sRGB", stacklevel=3
        )
        return image.convert("RGB")


@functools.lru_cache(maxsize=32)
def _described(profile):
    """The colour space of an ICC profile, and whether it is sRGB to within rounding."""
    space = ImageCms.getOpenProfile(io.BytesIO(profile)).profile.xcolor_space
    if space != "RGB ":
        return space, False
    levels = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 15)], indexing="ij"), -1)
    levels = levels.reshape(1, -1, 3).astype(np.uint8)
    shown = ImageCms.applyTransform(Image.fromarray(levels), _transform(profile, "RGB"))
    return space, bool(np.abs(np.asarray(shown).astype(int) - levels).max() <= 1)


@functools.lru_cache(maxsize=32)
def _transform(profile, mode):
    # Made faster, a grey's curve has 33 points, too few for its dark end.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    return ImageCms.buildTransform(
        io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags
    )


@functools.cache
def _from_lab():
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _by_primaries(image, gamma, chromaticity, name):
    """RGB with a PNG's gamma and white, red, green and blue (CIE x, y each) as sRGB."""
    points = np.reshape(chromaticity, (4, 2))
    is_srgb = np.abs(points - [_D65, *_SRGB]).max() < 0.001
    same_curve = abs(gamma / _SRGB_GAMMA - 1) < _NEAR
    if is_srgb and same_curve:
        return image
    try:
        if not gamma:
            raise ZeroDivisionError("a gamma of 0")
        matrix = np.linalg.inv(_to_xyz(_D65, _SRGB)) @ _to_xyz(points[0], points[1:])
    except (ZeroDivisionError, FloatingPointError, np.linalg.LinAlgError) as error:
        warnings.warn(
            f"{name}: its gAMA and cHRM chunks cannot be used ({error}); taken as sRGB",
            stacklevel=3,
        )
        return image
    levels = np.arange(256) / 255
    curve = _srgb_linear(levels) if same_curve else levels ** (1 / gamma)
    linear = np.clip(curve[np.asarray(image)] @ matrix.T, 0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.round(255 * shown).astype(np.uint8))


def _srgb_linear(levels):
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _to_xyz(white, primaries):
    """The matrix from linear RGB of these primaries to XYZ adapted to sRGB's white."""
    white, columns = _xyz(white), np.stack([_xyz(p) for p in primaries], 1)
    to_xyz = columns * np.linalg.solve(columns, white)
    scale = (_BRADFORD @ _xyz(_D65)) / (_BRADFORD @ white)
    return np.linalg.inv(_BRADFORD) @ (scale[:, None] * _BRADFORD) @ to_xyz


def _xyz(point):
    x, y = map(float, point)
    return np.array([x / y, 1, (1 - x - y) / y])
