"""Pictures that are made for a training: stacked, mirrored, outlined, or drawn by the model."""

import numpy as np

from sdjax.data.source import stack
from sdjax.training.loop.settings import say
from sdjax.training.objectives.autoencoder import as_float


def by_size(source, indices) -> list[dict]:
    """The usable ones of these items of a source with buckets, stacked bucket by bucket."""
    groups = {}
    for index in indices:
        item = source[index]
        if item is not None:
            groups.setdefault(item["image"].shape, []).append({"index": index, **item})
    return [stack(items) for _, items in sorted(groups.items())]


def mirrored(arrays):
    """All items, and after them all of them mirrored; of latents "flipped_…" are these."""
    pictures = ("image", "control", "original", "mask")

    def other(name, array):
        return array[:, :, ::-1] if name in pictures else arrays.get(f"flipped_{name}", array)

    return {
        name: np.concatenate([array, other(name, array)])
        for name, array in arrays.items() if not name.startswith("flipped_")
    }


def make_class_pictures(model, prior, folder, size, sheet):
    """Makes what is missing of the class's pictures, by their numbers, with the model as it is."""
    there = len([path for path in folder.iterdir() if path.suffix.lower() == ".png"])
    missing = range(there, prior.count)
    if not len(missing):
        return
    say(f"making {len(missing)} pictures of {prior.prompt!r} in {folder}")
    for start in range(missing.start, missing.stop, prior.batch_size):
        seeds = range(start, min(start + prior.batch_size, missing.stop))
        pictures = model.generate(
            [prior.prompt] * len(seeds), seed=[prior.seed + n for n in seeds], steps=sheet.steps,
            height=size, width=size, progress=False, batch_size=prior.batch_size,
        )
        for number, picture in zip(seeds, pictures, strict=True):
            picture.save(folder / f"{number:05}-class.png")


def edges(images, low=0.1):
    """Outlines of pictures uint8 [N, H, W, 3], float32 [N, H, W, 3] in 0 … 1: Sobel's, of light."""
    light = (as_float(images).mean(-1) + 1) / 2
    padded = np.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")

    def difference(axis):
        other = 3 - axis
        smooth = sum(
            weight * np.take(padded, np.arange(light.shape[other]) + i, axis=other)
            for i, weight in enumerate((1, 2, 1))
        )
        ahead, behind = (
            np.take(smooth, np.arange(light.shape[axis]) + i, axis=axis) for i in (2, 0)
        )
        return ahead - behind

    size = np.hypot(difference(1), difference(2)) / 4
    strong = np.clip((size - low) / low, 0, 1).astype(np.float32)
    return np.repeat(strong[..., None], 3, axis=-1)
