"""The little data sets of `benchmarks.finetune`, made from the emoji's pictures by formulas."""

import numpy as np
from PIL import Image

from sdjax.data import DataConfig, canny
from sdjax.evaluation.known import known_pictures

SIZE = 64  # the shipped model's pictures
# The two colours of the style. The autoencoder never saw another paper than white, and gives any
# other back as white.
DARK, LIGHT = np.float32([16, 24, 96]), np.float32([255, 255, 255])
SUBJECT = "teddy bear"  # an emoji that the shipped model never saw


def emoji(source: str) -> dict[str, np.ndarray]:
    """All emoji: {caption: uint8 [64, 64, 3]}, in Unicode's order.

    source: "emoji", drawn from the installed font, or "folder:PATH", where they lie with captions.
    """
    pictures, captions = known_pictures(DataConfig(source=source, image_size=SIZE))
    return dict(zip(captions, pictures, strict=True))


def duotone(picture: np.ndarray) -> np.ndarray:
    """A picture in two colours: black becomes a deep blue, white stays white; uint8 [..., 3].

    In between the two are mixed by the picture's light (ITU-R BT.601).
    """
    light = (picture.astype(np.float32) @ np.float32([0.299, 0.587, 0.114]) / 255)[..., None]
    return np.uint8(np.rint(DARK + light * (LIGHT - DARK)))


def off_style(pictures: np.ndarray) -> float:
    """How far colours are from any mixture of the two: root mean square of levels of 255."""
    x, way = pictures.astype(np.float64) - DARK, (LIGHT - DARK).astype(np.float64)
    along = np.clip(x @ way / (way @ way), 0, 1)[..., None] * way
    return float(np.sqrt(((x - along) ** 2).sum(-1).mean() / 3))


def turned(picture: np.ndarray, degrees: float = 0, size: float = 1, mirror=False) -> np.ndarray:
    """A picture on white mirrored, made smaller and turned about its middle; uint8 [H, W, 3]."""
    image = Image.fromarray(picture[:, ::-1] if mirror else picture)
    side = round(size * image.width)
    small = image.resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(small, ((image.width - side) // 2,) * 2)
    return np.asarray(canvas.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white"))


def views(picture: np.ndarray) -> list[np.ndarray]:
    """Four pictures of one emoji: as it is, mirrored, smaller, and turned by eight degrees."""
    return [picture, turned(picture, mirror=True), turned(picture, size=0.85), turned(picture, 8)]


def turned_views(emoji, captions, count=8, upright=True, seed=0):
    """Emoji mirrored, made smaller and turned by chance: (pictures, their captions).

    count: so many of each caption; upright: and before them the emoji as it is.
    """
    random, pictures = np.random.default_rng(seed), []
    for caption in captions:
        pictures += [emoji[caption]] if upright else []
        for _ in range(count):
            degrees, size = random.uniform(-30, 30), random.uniform(0.7, 1)
            pictures.append(turned(emoji[caption], degrees, size, bool(random.integers(2))))
    return pictures, [caption for caption in captions for _ in range(count + upright)]


def edges(picture: np.ndarray) -> np.ndarray:
    """The control picture, white outlines on black: Canny's; uint8 [H, W, 3]."""
    return np.asarray(canny(Image.fromarray(picture)))


def write(folder, pictures, captions=None) -> None:
    """Pictures as a folder that a recipe reads, captions beside them; anew if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:05}.png")
        if captions is not None:
            (folder / f"{number:05}.txt").write_text(captions[number], encoding="utf-8")
