"""Whether made pictures help a classifier: the same one, trained with and without them."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import stats

from sdjax.data import DataConfig
from sdjax.data.labelled import Labelled, labelled_pictures
from sdjax.errors import SdjaxError, check_at_least

from .classifier import Classifier, shuffled
from .report import Figures, percent, show

_BATCH = 64
ARMS = ("real", "standard", "synthetic", "synthetic only")


@dataclass(frozen=True)
class Augmentation:
    """A small classifier trained on real pictures, with standard augmentation, with made pictures
    beside them, and on made pictures alone: always the same network and number of updates.

    Writes augmentation.json. The model that made the pictures must have seen no others than the
    real ones given here: the pictures' own records of what they were made of are checked.
    """

    real: str = ""
    """Folder of the real pictures, one subfolder a class."""
    synthetic: str = ""
    """Folder that `sdjax augment` made of them."""
    test: str = ""
    """Folder of the pictures that all are tested on, of the same classes."""
    image_size: int = 32
    """Side of the pictures as the classifier sees them."""
    seeds: int = 5
    """Trainings of each kind; seed k of each starts from the same weights."""
    updates: int = 300
    share: float = 0.5
    """Of made pictures in a batch, where there are both."""
    flip: bool = False
    """Whether standard augmentation mirrors pictures, beside moving them."""
    out: str = "evaluation"
    """Folder of the results."""
    data: DataConfig = field(default_factory=lambda: DataConfig(require_captions=False))
    """How the folders are read."""

    needs_model = False

    def __post_init__(self):
        check_at_least(2, self, "seeds")
        check_at_least(1, self, "updates")
        check_at_least(8, self, "image_size")
        if not 0 < self.share < 1:
            raise SdjaxError(f"share must lie between 0 and 1, got {self.share}")


def evaluate_augmentation(_, config: Augmentation, subject=None):
    """Run it: {"arms": {name: {"accuracy": [a seed each], "mean"}}, "gain": {"mean", "interval"},
    "counts", "nearest": {"ratio", "copies"}, …}.

    gain: of made pictures beside real ones over standard augmentation, the mean of the seeds'
    differences and Student's 95 % interval. nearest: ratio is the median distance of a made
    picture to the nearest real one over that of a real picture to the nearest other of its class;
    copies is the share of made pictures nearer than a tenth of that.

    Raises SdjaxError where a folder is not given, classes differ, a made picture is of none of the
    real ones, or a test picture is a real one too.
    """
    for name in ("real", "synthetic", "test"):
        if not getattr(config, name):
            raise SdjaxError(f"--{name} is needed: a folder of pictures, one subfolder a class")
    figures = Figures(config, "augmentation", subject or config.synthetic)
    real, made, test = (_read(config, getattr(config, n)) for n in ("real", "synthetic", "test"))
    classes = real.classes
    _check(real, made, test, classes, config)
    images = np.concatenate([real.images, made.images])
    labels = np.concatenate([real.numbers(classes), made.numbers(classes)])
    arms = {}
    for arm in ARMS:
        found = [
            Classifier.fitted(
                images, labels, len(classes), _rows(arm, len(real.images), len(images), config, k),
                updates=config.updates, shift=arm != "real", flip=config.flip and arm != "real",
                seed=k,
            ).accuracy(test.images, test.numbers(classes))
            for k in range(config.seeds)
        ]  # fmt: skip
        arms[arm] = {"accuracy": found, "mean": float(np.mean(found))}
    results = figures.write({
        "arms": arms,
        "gain": gain(arms["synthetic"]["accuracy"], arms["standard"]["accuracy"]),
        "counts": {"real": len(real.images), "synthetic": len(made.images),
                   "test": len(test.images), "classes": len(classes)},
        "nearest": nearness(real, made),
    })  # fmt: skip
    titles = {"real": "real", "standard": "real, standard augmentation",
              "synthetic": "the same and made pictures", "synthetic only": "made pictures alone"}
    low, high = results["gain"]["interval"]
    rows = [(titles[arm], percent(arms[arm]["mean"])) for arm in ARMS]
    rows.append(("gain of made pictures",
                 f"{100 * results['gain']['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"))
    show(f"Accuracy, mean of {config.seeds} seeds", ["test pictures"], rows, figures.path(".json"))
    return results


def gain(after, before) -> dict:
    """The mean of paired differences and Student's 95 % interval of it."""
    differences = np.subtract(after, before)
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    mean = float(differences.mean())
    return {"mean": mean, "interval": [mean - float(half), mean + float(half)]}


def nearness(real: Labelled, made: Labelled) -> dict:
    """How near made pictures lie to real ones, see `evaluate_augmentation`."""
    flat, near = (x.images.reshape(len(x.images), -1) / 255.0 for x in (real, made))
    to_real = np.sqrt(_squares(near, flat).min(1))
    among = _squares(flat, flat)
    same = np.array(real.labels)[:, None] == np.array(real.labels)
    np.fill_diagonal(same, False)
    between = np.sqrt(np.where(same, among, np.inf).min(1))
    usual = float(np.median(between[np.isfinite(between)])) if np.isfinite(between).any() else 0.0
    return {
        "ratio": float(np.median(to_real)) / usual if usual else None,
        "copies": float((to_real < usual / 10).mean()),
    }


def _squares(a, b):
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.maximum(squares, 0)


def _rows(arm, real, total, config, seed):
    """Which pictures each update sees, int [updates, batch]: real ones come first of all."""
    own = shuffled(real, config.updates, _BATCH, seed)
    others = real + shuffled(total - real, config.updates, _BATCH, seed)
    if arm == "synthetic only":
        return others
    if arm == "synthetic":
        count = round(config.share * _BATCH)
        return np.concatenate([own[:, count:], others[:, :count]], 1)
    return own


def _read(config, folder):
    return labelled_pictures(
        replace(config.data, source=f"folder:{folder}", image_size=config.image_size)
    )


def _check(real, made, test, classes, config):
    if len(classes) < 2:
        raise SdjaxError(f"{config.real} has the one class {classes[0]!r}: two or more are needed")
    for folder, found in ((config.synthetic, made), (config.test, test)):
        if other := set(found.classes) ^ set(classes):
            raise SdjaxError(
                f"{folder} and {config.real} differ in their classes: {', '.join(sorted(other))}"
            )
    path = Path(config.synthetic, "metadata.jsonl")
    if not path.exists():
        raise SdjaxError(f"{path} is missing: it says what each picture was made of")
    known = set(real.names)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("source") not in known:
            raise SdjaxError(
                f"{row.get('file_name')} of {config.synthetic} was made of {row.get('source')}, "
                f"which is not in {config.real}: the model must see no other pictures"
            )
    seen = {image.tobytes(): name for image, name in zip(real.images, real.names)}
    for image, name in zip(test.images, test.names):
        if image.tobytes() in seen:
            raise SdjaxError(
                f"{name} of {config.test} is {seen[image.tobytes()]} of {config.real} too: test "
                "pictures must be others"
            )
