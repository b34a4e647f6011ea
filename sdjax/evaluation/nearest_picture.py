"""Whether a model trained on a few thousand pictures makes the one that a caption names."""

from dataclasses import dataclass, field

import numpy as np

from sdjax.data import DataConfig
from sdjax.errors import SdjaxError, check_at_least

from .features import extract, feature_function
from .generation import Generation, generate
from .known import known_pictures
from .nearest import nearest_rate
from .report import RIGHT, WRONG, Figures, interval, percent, show
from .sheets import sheet


@dataclass(frozen=True)
class NearestNeighbour:
    """Pictures of captions drawn from a source: is the nearest picture of the source the right one?

    Writes nearest.json and nearest.png, the sheet of the drawn captions in order, right ones green.
    """

    captions: int = 40
    """Different captions drawn; all of the source where it has fewer."""
    caption_seed: int = 0
    """Draws the captions."""
    features: str = "raw"
    """What is compared: raw, all pixels at full size, or a feature function's name."""
    sheet: int = 40
    """Pictures on the sheet."""
    data: DataConfig = field(default_factory=lambda: DataConfig(source="emoji", subset="core"))
    """Where the known pictures and their captions come from."""
    out: str = "evaluation"
    """Folder of the results."""
    generation: Generation = field(default_factory=Generation)
    """How the model is asked for pictures."""

    def __post_init__(self):
        check_at_least(1, self, "captions")
        check_at_least(0, self, "sheet")
        if self.data.source == "shapes":
            raise SdjaxError("the shapes have no end, so none of them is the nearest: "
                             "evaluate shapes instead")


def evaluate_nearest(model, config: NearestNeighbour = NearestNeighbour(), subject=None):
    """Run it: {"first": share, "first_interval", "among_five": share, "known": N, "captions": [{
    "caption", "nearest": [...], "right"}], "model", "files", "settings"}. subject: what the model
    is called there, its folder or file."""
    figures = Figures(config, "nearest", subject)
    function = None if config.features == "raw" else feature_function(config.features)
    known, known_captions = known_pictures(config.data)
    different = list(dict.fromkeys(known_captions))
    drawn = np.random.default_rng(config.caption_seed).permutation(len(different))
    captions = [different[i] for i in drawn[:config.captions]]
    made = generate(model, captions, config.generation)
    if made.shape[1:] != known.shape[1:]:
        raise SdjaxError(f"the model makes pictures of {made.shape[2]}x{made.shape[1]}, the source "
                         f"was read at {known.shape[1]}: set data.image_size")
    seen, compared = (x if function is None else extract(function, x) for x in (made, known))
    rate = nearest_rate(seen, captions, compared, known_captions)
    results = {
        "first": rate.first, "first_interval": interval(rate.first, len(captions)),
        "among_five": rate.among_five, "known": len(known),
        "captions": [
            {"caption": caption, "nearest": [known_captions[j] for j in row], "right": bool(right)}
            for caption, row, right in zip(captions, rate.indices, rate.right)],
    }
    results = figures.write(results)
    if config.sheet:
        colors = [RIGHT if right else WRONG for right in rate.right[:config.sheet]]
        sheet(made[:config.sheet], captions[:config.sheet], columns=8, scale=2,
              caption_colors=colors).save(figures.path(".png"))
    show(f"Nearest of {len(known)} known pictures", ["share"], [
        ("captions", len(captions)), ("the right one", percent(rate.first)),
        ("right one among five", percent(rate.among_five))], figures.path(".json"))
    return results
