"""Pictures as CLIP's picture encoders are given them."""

import numpy as np
from PIL import Image

from sdjax.data.pictures import open_picture

# Of the pictures that CLIP was trained on, for red, green and blue in 0 … 1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_picture(picture: Image.Image, size: int = 224) -> np.ndarray:
    """The middle square of a picture, in CLIP's units: float32 [size, size, 3].

    The shorter side is scaled to `size` (bicubic, 8 bits) before what is longer is cut off, and
    the channels get CLIP's mean and deviation: what transformers' CLIPImageProcessor does. A
    picture of another mode than RGB is taken as `sdjax.data.pictures.open_picture` shows it.
    """
    if picture.mode != "RGB":
        picture = open_picture(picture, "picture")
    width, height = picture.size
    short = min(width, height)
    scaled = tuple(size * side // short for side in (width, height))
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in scaled)
    square = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)
    return (square / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
