"""Labelled pictures made from labelled pictures, and what is known of each."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from sdjax.data import DataConfig
from sdjax.data.labelled import Labelled, labelled_pictures
from sdjax.errors import SdjaxError, check_at_least
from sdjax.evaluation.classifier import Classifier
from sdjax.evaluation.sheets import to_uint8
from sdjax.folders import check_writable, one_line_errors, writable_folder
from sdjax.weights.folder import write_json

SETTINGS, KEPT, LEFT_OUT = "augmentation.json", "metadata.jsonl", "left_out.jsonl"


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How labelled pictures are varied: each becomes several, by image to image (SDEdit,
    arXiv 2108.01073; for augmentation arXiv 2302.07944).
    """

    per_image: int = 4
    """Pictures made of each."""
    strength: tuple[float, ...] = (0.5,)
    """Share of the noise, in (0, 1]: how far a picture may go from what it is made of. Of several
    one is drawn for each picture."""
    prompt: str = "{caption}"
    """What is asked for: {label} and {caption} stand for those of the picture, and {caption} for
    its label where it has none."""
    negative_prompt: str | None = None
    steps: int | None = None
    """Of the sampler, for the whole way; None for the model's own."""
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int = 0
    batch_size: int = 8
    """Pictures made at once."""
    filter: float = 0.0
    """Leaves out pictures to which a classifier, trained on the real ones, gives a probability
    below this of being of their class; 0 for none."""

    def __post_init__(self):
        check_at_least(1, self, "per_image", "batch_size")
        for strength in self.strength or (0,):
            if not 0 < strength <= 1:
                raise SdjaxError(f"strength must be in (0, 1], got {strength}")
        if not 0 <= self.filter < 1:
            raise SdjaxError(f"filter is a probability in [0, 1), got {self.filter}")
        try:
            self.prompt.format(label="", caption="")
        except (KeyError, IndexError, ValueError) as error:
            raise SdjaxError(
                f"prompt may hold {{label}} and {{caption}}, and braces are doubled: got "
                f"{self.prompt!r}"
            ) from error


class Wish(NamedTuple):
    """One picture that is to be made."""

    index: int
    """Of the picture that it is made of."""
    copy: int
    seed: int
    strength: float
    prompt: str
    file: str


def augment(
    model, data: DataConfig, out, config: Augmentation = Augmentation(), subject: str | None = None
) -> dict[str, int]:
    """Make labelled pictures in the folder `out`: LABEL/NAME-K.png, with metadata.jsonl.

    Each line of metadata.jsonl names the picture's file, label, text, the file that it was made of
    ("source"), seed, strength and, with a filter, its probability; left_out.jsonl has those that
    the filter left out. The same call goes on where an earlier one was stopped. What is read back
    is an ordinary folder of pictures with classes, and with captions.

    model: an `sdjax.StableDiffusion`. data: the labelled pictures, see `labelled_pictures`; with
    image_size 0 at the model's size. subject: what the model is called in the settings beside.

    Returns {"made", "left_out", "before"}, numbers of pictures. Raises SdjaxError for data without
    classes, and where `out` holds pictures of other settings.
    """
    check_writable(out)
    if not data.image_size:
        data = dataclasses.replace(data, image_size=_side(model))
    real = labelled_pictures(dataclasses.replace(data, require_captions=False))
    wishes = list(_wishes(real, config))
    folder = writable_folder(out)
    about = {"model": subject, "source": data.source, **dataclasses.asdict(config)}
    about.pop("batch_size")
    _check_settings(folder, json.loads(json.dumps(about)))
    known = [line["file_name"] for name in (KEPT, LEFT_OUT) for line in _lines(folder / name)]
    todo = [wish for wish in wishes if wish.file not in set(known)]
    counts = {"made": 0, "left_out": 0, "before": len(known)}
    if not todo:
        return counts
    judge = None
    if config.filter:
        classes = real.classes
        judge = Classifier.fitted(real.images, real.numbers(classes), len(classes))
    with one_line_errors(folder):
        starts = range(0, len(todo), config.batch_size)
        for start in track(starts, "Augmenting", transient=True):
            batch = todo[start : start + config.batch_size]
            made = _made(model, real, batch, config)
            sure = np.ones(len(batch))
            if judge is not None:
                own = [classes.index(real.labels[wish.index]) for wish in batch]
                sure = judge.probabilities(made)[np.arange(len(batch)), own]
            for wish, image, probability in zip(batch, made, sure):
                keep = probability >= config.filter
                line = _provenance(real, wish)
                if judge is not None:
                    line["probability"] = round(float(probability), 4)
                if keep:
                    _save(folder / wish.file, image)
                with (folder / (KEPT if keep else LEFT_OUT)).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts["made" if keep else "left_out"] += 1
    return counts


def _wishes(real: Labelled, config) -> Iterator[Wish]:
    stems = set()
    for index, (label, name) in enumerate(zip(real.labels, real.names, strict=True)):
        inside = Path(name).with_suffix("")
        stem = re.sub(r"[^\w.-]+", "_", "_".join(inside.parts[1:] or inside.parts))
        place = re.sub(r"[/\\:]", "_", label)
        if (place, stem) in stems:  # a.png beside a.jpg, or a data set's
            stem = f"{stem}_{index}"
        stems.add((place, stem))
        prompt = config.prompt.format(label=label, caption=real.captions[index] or label)
        for copy in range(config.per_image):
            draw = np.random.default_rng((config.seed, index, copy))
            yield Wish(
                index, copy, int(draw.integers(2**31)), float(draw.choice(config.strength)),
                prompt, f"{place}/{stem}-{copy:02d}.png",
            )  # fmt: skip


def _made(model, real, batch, config):
    """uint8 [len(batch), H, W, 3]."""
    # The last batch is filled up, so that all run the program of one shape.
    rows = [batch[min(i, len(batch) - 1)] for i in range(config.batch_size)]
    options = {
        name: value for name in ("steps", "guidance_scale", "sampler", "negative_prompt")
        if (value := getattr(config, name)) is not None
    }  # fmt: skip
    images = model.generate(
        [row.prompt for row in rows], image=[real.images[row.index] for row in rows],
        strength=[row.strength for row in rows], seed=[row.seed for row in rows],
        weighting=None, output="numpy", progress=False, **options,
    )  # fmt: skip
    return to_uint8(images)[: len(batch)]


def _provenance(real, wish):
    return {
        "file_name": wish.file, "text": wish.prompt, "label": real.labels[wish.index],
        "source": real.names[wish.index], "seed": wish.seed, "strength": wish.strength,
    }  # fmt: skip


def _save(path, image):
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    Image.fromarray(image).save(unfinished, "png")
    unfinished.replace(path)


def _check_settings(folder, about):
    path = folder / SETTINGS
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in about if there.get(name) != about[name]]
        if other:
            name = other[0]
            raise SdjaxError(
                f"{folder} holds pictures of other settings, {name} {there.get(name)!r}, now "
                f"{about[name]!r}: choose another folder, or give the same"
            )
        return
    if any(folder.iterdir()):
        raise SdjaxError(f"{folder} is not empty, and not of an augmentation: choose another one")
    write_json(path, about)


def _lines(path):
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # a line cut short by a kill
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _side(model):
    size = model.unet.config.sample_size
    return (max(size) if isinstance(size, tuple) else size) * model.vae.config.downsampling
