"""How many digits that a model speaks are heard as asked, by a reader of real recordings."""

from dataclasses import dataclass, field, replace

import numpy as np

from sdjax.data.sounds import DIGITS, SoundFolder, caption_of
from sdjax.errors import check_at_least

from .digit_reader import Reader, trained_reader
from .generation import Generation, generate
from .report import RIGHT, WRONG, Figures, interval, percent, show
from .sheets import sheet

KINDS = ("digit", "speaker", "both")


@dataclass(frozen=True)
class SpokenDigits:
    """Captions such as "seven by jackson", made, heard, and read back from the sound.

    A network that was trained on the recordings for training, and on nothing that a model made,
    reads digit and speaker. Beside what is made it reads the recordings kept out, and these after
    they went through a spectrogram and Griffin-Lim as all that is made does: the most that can be
    reached. Writes spoken_digits.json, a sheet with what was misheard red, and sounds of each digit.
    """

    recordings: str = "recordings"
    """Folder of the recordings, DIGIT_SPEAKER_NUMBER.wav."""
    each: int = 5
    """Sounds of each digit and speaker, for each seed."""
    seeds: int = 3
    """How often all is made anew."""
    epochs: int = 15
    """That the reader is trained for."""
    reader_seed: int = 0
    """Of the reader."""
    sheet: int = 60
    """Pictures on the sheet."""
    out: str = "evaluation"
    """Folder of the results."""
    generation: Generation = field(default_factory=Generation)
    """How the model is asked for pictures."""

    def __post_init__(self):
        check_at_least(1, self, "each", "seeds", "epochs")
        check_at_least(0, self, "sheet")


def recordings(folder: str, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pictures uint8 [N, 64, 64, 3], digits int[N], speakers str[N]) of a split."""
    source = SoundFolder(folder, split)
    pictures = np.stack([source[i]["image"] for i in range(len(source))])
    _, digits, speakers = zip(*source.items, strict=True)
    return pictures, np.array(digits), np.array(speakers)


def heard(pictures: np.ndarray) -> np.ndarray:
    """Pictures of the sound of pictures: what was only in the picture is gone."""
    layout, made = SoundFolder.layout, []
    for start in range(0, len(pictures), 32):  # one program for all
        rows = np.minimum(np.arange(start, start + 32), len(pictures) - 1)
        sounds = layout.sounds(pictures[rows])[: len(pictures) - start]
        made += [layout.picture(sound, layout.mel.rate) for sound in sounds]
    return np.stack(made)


def hits(reader: Reader, pictures, digits, speakers) -> dict[str, np.ndarray]:
    """bool[N] of each of KINDS: whether it is read as it should be."""
    digit, speaker = reader(pictures)
    found = {"digit": digit == digits, "speaker": np.array(reader.speakers)[speaker] == speakers}
    return found | {"both": found["digit"] & found["speaker"]}


def _shares(found: dict[str, np.ndarray]) -> dict:
    count = len(found["both"])
    return {"count": count} | {
        kind: {"accuracy": float(found[kind].mean()),
               "interval": interval(float(found[kind].mean()), count)} for kind in KINDS
    }  # fmt: skip


def distance_within(pictures: np.ndarray, captions: np.ndarray) -> float:
    """Mean distance of two pictures of the same caption, root mean square in grey values."""
    found = []
    for caption in np.unique(captions):
        own = np.float32(pictures[captions == caption][..., 0])
        own = own.reshape(len(own), -1)
        squares = np.square(own[:, None] - own[None]).mean(-1)
        found += list(np.sqrt(squares[np.triu_indices(len(own), 1)]))
    return float(np.mean(found)) if found else float("nan")


def nearest(pictures: np.ndarray, known: np.ndarray) -> float:
    """Mean distance of pictures to the nearest known one, root mean square in grey values."""
    x, y = (np.float32(p[..., 0]).reshape(len(p), -1) for p in (pictures, known))
    squares = (x**2).mean(1)[:, None] + (y**2).mean(1) - 2 * (x @ y.T) / x.shape[1]
    return float(np.sqrt(np.maximum(squares.min(1), 0)).mean())


def evaluate_digits(model, config: SpokenDigits = SpokenDigits(), subject=None):
    """Run it: {"recordings" | "resynthesis" | "made": {"count", "digit" | "speaker" | "both":
    {"accuracy", "interval"}}, "seeds": [accuracy of each], "diversity", "nearest", …}.

    subject: what the model is called there, its folder or file.
    """
    figures = Figures(config, "spoken_digits", subject)
    known, digits, speakers = recordings(config.recordings, "train")
    reader = trained_reader(known, digits, speakers, config.epochs, config.reader_seed)
    kept, *told = recordings(config.recordings, "heldout")
    asked = [(digit, name) for _ in range(config.each) for name in reader.speakers
             for digit in range(len(DIGITS))]  # fmt: skip
    wanted, by = (np.array(part) for part in zip(*asked, strict=True))
    captions = [caption_of(digit, name) for digit, name in asked]
    found, made, per_seed = [], [], []
    for number in range(config.seeds):
        seed = config.generation.seed + number * len(captions)
        drawn = generate(model, captions, replace(config.generation, seed=seed))
        made.append(heard(drawn))
        found.append(hits(reader, made[-1], wanted, by))
        per_seed.append({kind: float(found[-1][kind].mean()) for kind in KINDS})
        if number == 0:
            _keep(figures, drawn, asked)
    every, again = np.concatenate(made), heard(kept)
    together = {kind: np.concatenate([one[kind] for one in found]) for kind in KINDS}
    all_captions = np.array(captions * config.seeds)
    of_known = np.array([caption_of(*pair) for pair in zip(digits, speakers, strict=True)])
    results = {
        "recordings": _shares(hits(reader, kept, *told)),
        "resynthesis": _shares(hits(reader, again, *told)),
        "made": _shares(together),
        "seeds": per_seed,
        "diversity": {"made": distance_within(every, all_captions),
                      "recordings": distance_within(known, of_known)},
        "nearest_of_training": {"made": nearest(every, known), "recordings": nearest(kept, known)},
    }
    if config.sheet:
        colors = [RIGHT if right else WRONG for right in found[0]["both"][: config.sheet]]
        drawn = sheet(made[0][: config.sheet], captions[: config.sheet], columns=10, scale=1,
                      caption_colors=colors)  # fmt: skip
        drawn.save(figures.path(".png"))
    results = figures.write(results)
    rows = ("recordings", "resynthesis", "made")
    show("Spoken digits that are heard as asked", rows, [
        ("sounds", *(results[row]["count"] for row in rows)),
        *((kind, *(_shown(results[row][kind]) for row in rows)) for kind in KINDS),
    ], figures.path(".json"))  # fmt: skip
    return results


def _shown(found) -> str:
    low, high = found["interval"]
    return f"{percent(found['accuracy'])} ({100 * low:.1f} … {100 * high:.1f})"


def _keep(figures, pictures, asked) -> None:
    """Writes a sound of each digit, each by another speaker."""
    names = sorted({name for _, name in asked})
    for digit in range(len(DIGITS)):
        name = names[digit % len(names)]
        place = asked.index((digit, name))
        sound = SoundFolder.layout.sound(pictures[place])
        sound.save(figures.path(f"_{digit}_{name}.wav"))
