"""Pictures with classes: a folder of folders, or a data set with labels."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdjax.data.config import DataConfig
from sdjax.data.folder import ImageFolder
from sdjax.data.source import open_source
from sdjax.errors import SdjaxError


class Labelled(NamedTuple):
    """Pictures and what is known of them."""

    images: np.ndarray
    """uint8 [N, H, W, 3]."""
    labels: list[str]
    """The class of each."""
    captions: list[str]
    """The caption of each; "" where there is none."""
    names: list[str]
    """What each is called: in a folder its path in it."""

    @property
    def classes(self) -> list[str]:
        """The different classes, sorted."""
        return sorted(set(self.labels))

    def numbers(self, classes: list[str]) -> np.ndarray:
        """The place of each label in `classes`, int32 [N]."""
        return np.array([classes.index(label) for label in self.labels], np.int32)


def labelled_pictures(data: DataConfig) -> Labelled:
    """All usable pictures of a source.

    The class of a picture is the name of the subfolder that it lies in, of several the first; where
    it lies in none its caption, which is the label's name in data sets with labels.

    Raises SdjaxError where a subfolder has no pictures, a picture has no class, or no picture is
    usable.
    """
    source = open_source(data)
    if isinstance(source.raw, ImageFolder):
        _check_filled(source.raw)
    images, labels, captions, names = [], [], [], []
    for index in range(len(source)):
        item = source[index]
        if item is None:
            continue
        name, caption = source.name(index), item["caption"].partition("\n")[0]
        folder, slash, _ = name.partition("/")
        label = folder if slash and isinstance(source.raw, ImageFolder) else caption
        if not label:
            raise SdjaxError(
                f"{name} has no class: put each class into a folder of its name, or captions beside"
            )
        images.append(item["image"])
        labels.append(label)
        captions.append(caption)
        names.append(name)
    if not images:
        raise SdjaxError(f"the source {data.source!r} has no usable pictures")
    return Labelled(np.stack(images), labels, captions, names)


def _check_filled(folder):
    filled = {name.partition("/")[0] for name, _ in folder.items}
    for path in sorted(Path(folder.root).iterdir()):
        hidden = path.name.startswith((".", "__"))
        if path.is_dir() and not hidden and path.name not in filled:
            raise SdjaxError(f"the class {path.name!r} has no pictures: fill or remove "
                             f"{os.fspath(path)}")
