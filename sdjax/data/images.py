"""Decoding, cropping and scaling of pictures."""
import numpy as np
from PIL import Image

from sdjax.data.pictures import open_picture


def decode_image(file, name: str, least: int = 0) -> np.ndarray:
    """The picture in a file, uint8 [height, width, 3], as `open_picture` shows it.

    Args:
      file: a path, or the encoded bytes.
      name: what to call the picture where it is broken.
      least: as `open_picture` has it.

    Raises:
      BrokenItem: where it cannot be read to its end.
    """
    return np.asarray(open_picture(file, name, least=least))


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
    floats = images.astype(np.float32)
    floats /= np.float32(127.5)  # in place: new memory takes longer than the division
    floats -= np.float32(1)
    return floats


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] (clipped) to uint8 0…255, rounded: the inverse of `to_float`."""
    images = np.asarray(images, np.float32) * np.float32(127.5) + np.float32(127.5)
    return (np.clip(images, 0, 255) + np.float32(0.5)).astype(np.uint8)
