"""Opening a picture as a viewer shows it, whatever its file holds."""
import io
import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from sdjax.data.colour import to_srgb
from sdjax.errors import SdjaxError
from sdjax.text_files import is_pointer

# What Pillow raises for files that are broken, truncated, or no pictures at all.
_PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error,
    zlib.error, Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_GREY_LEVELS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies samples of few bits by


class BrokenItem(SdjaxError):
    """A picture, or an item of a source, that cannot be used: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def open_picture(source, name: str, mode: str = "RGB", least: int = 0) -> Image.Image:
    """A picture as a viewer shows it: upright, in sRGB, with 8 bits, the first of several frames.

    Of 16 bits the upper 8 count. Grey floats are taken as 0…1, and 32-bit whole numbers as shares
    of the largest; where a file's values do not fit that, nothing says what is white.

    Args:
      source: a path, the encoded bytes, an open file, or a PIL image.
      name: what to call the picture in messages.
      mode: "RGB" lays transparency on white, "RGBA" keeps it, "L" is the lightness of "RGB".
      least: a JPEG whose shorter side has twice as many pixels as this, or more, is decoded at half
        its size, a quarter or an eighth, which is faster; 0 for never.

    Raises:
      BrokenItem: where it cannot be read to its end, or not without guessing what it means.
    """
    try:
        if isinstance(source, Image.Image):
            picture = _as_shown(source, source, name)
        else:
            with Image.open(_readable(source)) as image:
                if least and image.format == "JPEG":
                    shorter = min(image.size)
                    image.draft(None, tuple(-(-side * least // shorter) for side in image.size))
                picture = _as_shown(image, source, name)
    except BrokenItem:
        raise
    except _PICTURE_ERRORS as error:
        raise BrokenItem(name, why_unreadable(source, error)) from error
    if picture.mode == "RGBA" and mode != "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB").convert(mode) if mode == "L" else picture.convert(mode)


def why_unreadable(source, error: Exception) -> str:
    """What to say of a source that Pillow refused with this error."""
    if isinstance(source, str | os.PathLike) and is_pointer(source):
        return ("a git-lfs pointer, not the picture itself: run `git lfs pull` in its repository, "
                "or download the file itself")
    return f"not a readable picture ({error})"


def _readable(source):
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _as_shown(image, source, name):
    """The image upright in sRGB, as L, RGB or RGBA."""
    raw = image.tile[0].args if getattr(image, "tile", None) else image.mode
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _PICTURE_ERRORS as error:
        orientation = None
        warnings.warn(f"{name}: its EXIF block is broken ({error}); not turned", stacklevel=3)
    colour, alpha = _separated(image, raw, source, name)
    shown = to_srgb(colour, image.info, name)
    if alpha is not None:
        shown = shown.convert("RGB")
        shown.putalpha(alpha)
    turn = _UPRIGHT.get(orientation)
    return shown if turn is None else shown.transpose(turn)


def _separated(image, raw, source, name):
    """The image without transparency, of mode L, RGB, CMYK or LAB; and its alpha or None."""
    mode, alpha = image.mode, None
    if image.format == "PNG" and mode != "P" and "transparency" in image.info:
        alpha = _where_not(image.info["transparency"], image, raw, source, name)
    elif image.has_transparency_data:
        image = image.convert("LA" if mode in ("LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    if mode in ("I", "F") or mode.startswith("I;16"):
        image = _eight_bits(image, name)
    elif _tag(image, _SAMPLE_FORMAT) == 2:
        raise BrokenItem(name, "its samples are signed, and nothing says which of them is black")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    return image, alpha


def _where_not(transparent, image, raw, source, name):
    """The alpha of a PNG whose tRNS chunk names one value, grey or RGB, as transparent.

    The chunk speaks of samples as they are in the file, Pillow of its own levels, so that this is
    not left to it.
    """
    if image.mode == "1":
        return Image.fromarray(np.where(np.asarray(image) == bool(transparent), 0, 255)
                               .astype(np.uint8))
    samples = np.asarray(image).astype(np.uint16)
    depth = 16 if image.mode == "I;16" or str(raw).endswith("16B") else 8
    if image.mode == "L" and raw in _GREY_LEVELS:
        samples //= _GREY_LEVELS[raw]
        depth = int(raw[-1])
    elif image.mode == "RGB" and depth == 16:
        samples = samples << 8 | _lower_bytes(source)
    elif np.max(transparent) > 255 and depth == 8 and isinstance(source, Image.Image):
        raise BrokenItem(name, "its transparent colour has 16 bits, and it was loaded with 8; give "
                         "its path")
    same = samples == np.array(transparent, np.uint16) & (1 << depth) - 1
    same = same.all(-1) if image.mode == "RGB" else same
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))


def _lower_bytes(source):
    """Of an RGB PNG with 16 bits, the bytes that Pillow leaves out: uint8 [height, width, 3]."""
    if hasattr(source, "seek"):
        source.seek(0)
    with Image.open(_readable(source)) as image:
        # Pillow takes the second byte of each pair where it believes it the upper one.
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        return np.asarray(image)


def _eight_bits(image, name):
    """Greys of more than 8 bits (mode I, F or I;16…) as L."""
    values, mode = np.asarray(image), image.mode
    if mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise BrokenItem(name, f"its floats are {values.min():g} to {values.max():g}, expected "
                             "0 to 1: nothing says which of them is white")
        levels = np.round(values * 255)
    else:
        bits = _bits(image, name)
        if bits == 32:
            values = values.view(np.uint32)
        if values.min() < 0:
            raise BrokenItem(name, "its whole numbers are negative in places: nothing says which "
                             "of them is black")
        levels = values >> (bits - 8)
        if values.max() and not levels.max() and bits > 16:
            raise BrokenItem(name, f"its whole numbers of {bits} bits reach {values.max()} only: "
                             "nothing says which of them is white")
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero; Pillow turns it round for 8 bits only
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8))


def _bits(image, name):
    """How many bits white has."""
    if image.format == "TIFF":
        bits = _tag(image, _BITS)
        return bits - 1 if _tag(image, _SAMPLE_FORMAT) == 2 else bits
    if image.mode != "I" or image.format in ("PNG", "PPM"):
        return 16  # to which Pillow scales a PPM of another maximum
    raise BrokenItem(name, "its 32-bit whole numbers have no range: nothing says which is white")


def _tag(image, number):
    """The first value of a TIFF tag, or None."""
    value = image.tag_v2.get(number) if image.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) and value else value
