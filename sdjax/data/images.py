"""Decoding, cropping and scaling of pictures."""
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

# What Pillow raises for files that are broken, truncated, or no pictures at all.
_PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
    Image.DecompressionBombError,
)


class BrokenItem(Exception):
    """An item of a source that cannot be used: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def decode_image(file, name: str) -> np.ndarray:
    """The picture in a file, uint8 [height, width, 3].

    Turned upright by its EXIF orientation; transparency is laid on white.

    Args:
      file: a path, or the encoded bytes.
      name: what to call the picture where it is broken.

    Raises:
      BrokenItem: where it cannot be read to its end.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            elif image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except _PICTURE_ERRORS as error:
        raise BrokenItem(name, f"not a readable picture ({error})") from error


def crop_and_resize(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of uint8 [height, width, 3], resized to uint8 [size, size, 3]."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 0…255 to float32 in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] (clipped) to uint8 0…255, rounded: the inverse of `to_float`."""
    images = np.asarray(images, np.float32) * np.float32(127.5) + np.float32(127.5)
    return (np.clip(images, 0, 255) + np.float32(0.5)).astype(np.uint8)
