"""Whether clips show what their captions say: who moves, where to, how fast and how evenly."""

from dataclasses import dataclass, field

import numpy as np

from sdjax.data.moving import FRAMES, moving_captions
from sdjax.data.moving_oracle import ATTRIBUTES, score_moving
from sdjax.errors import SdjaxError, check_at_least

from .generation import Generation, generate
from .report import RIGHT, WRONG, Figures, interval, percent, show
from .sheets import sheet

SPLITS = {"train": "of training's pairs", "heldout": "of pairs kept out"}
MADE = {"clips": "with motion modules", "frames": "frames by themselves"}


@dataclass(frozen=True)
class Moving:
    """Captions of the moving set, read back from clips by its oracle, and the same of frames that
    the model makes each by itself, without motion modules.

    Writes moving.json and for each split a sheet, a clip a row, with right captions green.
    """

    motion: str | None = None
    """Motion modules for the model; not needed where it brings its own."""
    captions: int = 256
    """Different captions of each split."""
    frames: int = FRAMES
    """Of each clip, at least 2."""
    control: bool = True
    """Whether frames by themselves are measured too."""
    caption_seed: int = 0
    """Chooses the captions."""
    sheet: int = 16
    """Clips on the sheet."""
    out: str = "evaluation"
    """Folder of the results."""
    generation: Generation = field(default_factory=Generation)
    """How the model is asked for clips."""

    def __post_init__(self):
        check_at_least(1, self, "captions")
        check_at_least(2, self, "frames")
        check_at_least(0, self, "sheet")


def figures_of(clips, captions) -> dict:
    """Of clips uint8 [N, F, H, W, 3]: {"clips": N, "accuracy": {name: share}, "all_interval",
    "direction_interval", "residual": mean in pixels of a picture of 32 or None, "dynamic": share of
    those asked to move that do}.
    """
    hits = score_moving(clips, captions)
    accuracy = {name: float(hits[name].mean()) for name in ATTRIBUTES}
    asked = np.array([not caption.endswith("still") for caption in captions])
    usable = np.isfinite(hits["residual"])
    count = len(captions)
    return {
        "clips": count, "accuracy": accuracy,
        "all_interval": interval(accuracy["all"], count),
        "direction_interval": interval(accuracy["direction"], count),
        "residual": float(hits["residual"][usable].mean()) if usable.any() else None,
        "dynamic": float(hits["moves"][asked].mean()) if asked.any() else None,
    }  # fmt: skip


def evaluate_moving(model, config: Moving = Moving(), subject=None):
    """Run it: {"train" | "heldout": {"clips" | "frames": as of `figures_of`}, "model", "files",
    "settings"}.

    model: an `sdjax.StableDiffusion`. subject: what it is called there, its folder or file. Raises
    SdjaxError for one without motion modules.
    """
    if config.motion is not None:
        model.load_motion(config.motion)
    if model.motion is None:
        raise SdjaxError("a model of clips is measured: name its motion modules by --motion")
    figures, results = Figures(config, "moving", subject), {}
    for split in SPLITS:
        captions = moving_captions(config.captions, split, config.caption_seed)
        clips = generate(model, captions, config.generation, frames=config.frames)
        results[split] = {"clips": figures_of(clips, captions)}
        if config.control:
            alone = [caption for caption in captions for _ in range(config.frames)]
            frames = generate(model, alone, config.generation)
            frames = frames.reshape(len(captions), config.frames, *frames.shape[1:])
            results[split]["frames"] = figures_of(frames, captions)
        if config.sheet:
            shown = slice(config.sheet)
            _sheet(clips[shown], captions[shown]).save(figures.path(f"_{split}.png"))
    results = figures.write(results)
    columns = [(split, made) for made in MADE for split in SPLITS if made in results[split]]
    show(
        "Clips that agree with their captions",
        [f"{SPLITS[split]}, {MADE[made]}" for split, made in columns],
        [
            ("clips", *(results[s][m]["clips"] for s, m in columns)),
            *((name, *(percent(results[s][m]["accuracy"][name]) for s, m in columns))
              for name in ATTRIBUTES),
            ("residual, pixels", *(_number(results[s][m]["residual"]) for s, m in columns)),
            ("moves when asked to", *(_share(results[s][m]["dynamic"]) for s, m in columns)),
        ],
        figures.path(".json"),
    )  # fmt: skip
    return results


def _number(value):
    return "—" if value is None else f"{value:.2f}"


def _share(value):
    return "—" if value is None else percent(value)


def _sheet(clips, captions):
    strips = np.concatenate(np.moveaxis(clips, 1, 0), axis=2)
    right = score_moving(clips, captions)["all"]
    colors = [RIGHT if one else WRONG for one in right]
    return sheet(strips, captions, columns=2, caption_colors=colors)
