"""How much of a `shapes` caption is in the picture that a model makes of it."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sdjax.data.oracle import ATTRIBUTES, placed, score
from sdjax.data.scenes import parse_caption
from sdjax.data.shapes import Shapes
from sdjax.errors import check_at_least

from .generation import Generation, generate
from .report import RIGHT, WRONG, Figures, interval, percent, show
from .sheets import sheet

SPLITS = {"train": "of training's combinations", "heldout": "of combinations kept out"}


@dataclass(frozen=True)
class ShapesAccuracy:
    """Captions of the shapes set, read back from the pictures by its oracle.

    Writes shapes.json and, for each split, a sheet with right captions green and wrong ones red.
    """

    captions: int = 256
    """Different captions of each split; fewer where the split has fewer."""
    objects: Literal["one", "two", "both"] = "one"
    """Objects in a picture."""
    caption_seed: int = 0
    """Chooses the captions."""
    sheet: int = 32
    """Pictures on the sheet."""
    out: str = "evaluation"
    """Folder of the results."""
    generation: Generation = field(default_factory=Generation)
    """How the model is asked for pictures."""

    def __post_init__(self):
        check_at_least(1, self, "captions")
        check_at_least(0, self, "sheet")


def shapes_captions(count, objects="one", split="train", seed=0):
    """Up to `count` different captions of a split, in the order in which a seed draws them.

    Fewer come back only where the split seems to have no more: 840 one-object pictures exist.
    """
    source = Shapes(objects=objects, split=split, seed=seed)
    found = {}
    for i in range(40 * count + 4000):
        found.setdefault(source.layout(i)[0].caption)
        if len(found) == count:
            break
    return list(found)


def accuracy(images, captions):
    """The share of pictures in which each attribute is as the caption says, "all" among them."""
    hits = score(images, captions)
    return {name: float(hits[name].mean()) for name in ATTRIBUTES}


def spread(images, captions):
    """How much pictures of one object differ where their captions leave it open, or None.

    {"down", "right": standard deviation of the object's middle, "size": that of its width among
    captions of the same size and shape}, in 64ths of the picture. A model that has collapsed gives
    less than the data. None where captions have two objects, or no picture has just one.
    """
    scenes = [parse_caption(caption) for caption in captions]
    places = placed(images)
    usable = np.isfinite(places[:, 0])
    if any(len(scene.things) != 1 for scene in scenes) or not usable.any():
        return None
    kinds = np.array([f"{s.things[0].size} {s.things[0].shape}" for s in scenes])
    rest = [places[mask, 2] - places[mask, 2].mean()
            for mask in ((kinds == kind) & usable for kind in np.unique(kinds)) if mask.any()]
    sizes = np.sqrt(np.mean(np.concatenate(rest) ** 2))
    down, right = places[usable, :2].std(0)
    return {"down": float(down), "right": float(right), "size": float(sizes)}


def evaluate_shapes(model, config: ShapesAccuracy = ShapesAccuracy(), subject=None):
    """Run it: {"train" | "heldout": {"captions": N, "accuracy": …, "all_interval": …,
    "spread": …}, "model", "files", "settings"}.

    subject: what the model is called there, its folder or file.
    """
    figures, results = Figures(config, "shapes", subject), {}
    for split in SPLITS:
        captions = shapes_captions(config.captions, config.objects, split, config.caption_seed)
        images = generate(model, captions, config.generation)
        found = accuracy(images, captions)
        results[split] = {"captions": len(captions), "accuracy": found,
                          "all_interval": interval(found["all"], len(captions)),
                          "spread": spread(images, captions)}
        if config.sheet:
            _sheet(images[:config.sheet], captions[:config.sheet]).save(figures.path(f"_{split}.png"))
    results = figures.write(results)
    show("Pictures that agree with their captions", SPLITS.values(), [
        ("captions", *(results[s]["captions"] for s in SPLITS)),
        *((name.replace("_", " "), *(percent(results[s]["accuracy"][name]) for s in SPLITS))
          for name in ATTRIBUTES),
        *((f"spread {name}", *(f"{results[s]['spread'][name]:.2f}" for s in SPLITS))
          for name in ("down", "right", "size") if all(results[s]["spread"] for s in SPLITS)),
    ], figures.path(".json"))
    return results


def _sheet(images, captions):
    colors = [RIGHT if right else WRONG for right in score(images, captions)["all"]]
    return sheet(images, captions, columns=8, scale=2, caption_colors=colors)
