"""Pictures on disk: numbered PNG files that never replace one another."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.evaluation.sheets import sheet
from sdjax.folders import writable_folder

SHOWN = 192  # pixels that a small picture is enlarged to, at least, on a sheet


def save_pictures(
    folder: str | os.PathLike,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    notes: Sequence[Mapping[str, object]] | None = None,
) -> list[Path]:
    """Saves each image as NNNNN.png and one captioned sheet of all as NNNNN-sheet.png.

    Numbers go on after the highest in the folder. `notes`, one mapping an image, go into the PNG's
    text. Returns the paths, the sheet's last.
    """
    folder = writable_folder(folder)
    names = (re.match(r"(\d+)(-sheet)?\.png$", path.name) for path in folder.iterdir())
    numbers = [int(name[1]) for name in names if name]
    first, paths = max(numbers, default=-1) + 1, []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        text = PngInfo()
        for name, value in {"prompt": caption, **(notes[i] if notes else {})}.items():
            text.add_itxt(name, str(value))
        paths.append(folder / f"{first + i:05d}.png")
        image.save(paths[-1], pnginfo=text)
    scale = max(1, SHOWN // max(images[0].size))
    paths.append(folder / f"{first:05d}-sheet.png")
    sheet(images, captions, scale=scale, smooth=True).save(paths[-1])
    return paths
