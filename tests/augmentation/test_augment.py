"""Labelled pictures to more of them: what is asked, kept, told, refused, and whether it helps."""

import json
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdjax.augmentation import Augmentation, augment
from sdjax.data import DataConfig
from sdjax.data.labelled import labelled_pictures
from sdjax.errors import SdjaxError
from sdjax.evaluation.augmentation import Augmentation as Protocol
from sdjax.evaluation.augmentation import evaluate_augmentation, gain, nearness
from sdjax.evaluation.classifier import Classifier, shuffled

SIDE = 16


class Model:
    """Gives each picture back, darker by its strength, and remembers what it was asked."""

    unet = types.SimpleNamespace(config=types.SimpleNamespace(sample_size=SIDE // 8))
    vae = types.SimpleNamespace(config=types.SimpleNamespace(downsampling=8))

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = [], stop_after

    def generate(self, prompt, *, image, strength, seed, **options):
        if self.stop_after is not None and len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((prompt, strength, seed, options))
        pictures = np.stack(image) / 127.5 - 1
        return pictures - 0.1 * np.array(strength)[:, None, None, None]


def picture(draw, dark):
    noise = draw.normal(0, 25, (SIDE, SIDE, 3))
    noise[:, : SIDE // 2] += -60 if dark else 60  # which half is darker tells the class
    return np.clip(128 + noise, 0, 255).astype(np.uint8)


def write(folder, count, seed, classes=("dark", "light")):
    draw = np.random.default_rng(seed)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for i in range(count):
            image = picture(draw, label == "dark")
            Image.fromarray(image).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "real", 3, seed=0)


def data(folder):
    return DataConfig(source=f"folder:{folder}", image_size=0, require_captions=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_picture_becomes_several_with_label_and_provenance(folder, tmp_path):
    model, out = Model(), tmp_path / "more"
    config = Augmentation(per_image=2, strength=(0.25, 0.75), prompt="a {label} half", batch_size=5,
                          steps=7)  # fmt: skip
    assert augment(model, data(folder), out, config) == {"made": 12, "left_out": 0, "before": 0}
    rows = lines(out / "metadata.jsonl")
    assert len(rows) == 12 and {row["strength"] for row in rows} == {0.25, 0.75}
    assert rows[0] | {"seed": 0, "strength": 0} == {
        "file_name": "dark/0-00.png", "text": "a dark half", "label": "dark",
        "source": "dark/0.png", "seed": 0, "strength": 0,
    }  # fmt: skip
    assert len({row["seed"] for row in rows}) == 12
    real = np.asarray(Image.open(folder / "dark/0.png"), float)
    made = np.asarray(Image.open(out / "dark/0-00.png"), float)
    wanted = np.clip(real - 12.75 * rows[0]["strength"], 0, 255)
    np.testing.assert_allclose(made, wanted, atol=0.51)
    # Batches of one shape, the last filled up, each picture with its own strength and seed.
    assert [len(asked[0]) for asked in model.asked] == [5, 5, 5]
    assert model.asked[0][3]["steps"] == 7
    # Read back it is a folder of pictures with classes and captions.
    again = labelled_pictures(DataConfig(source=f"folder:{out}", image_size=SIDE))
    assert again.classes == ["dark", "light"] and set(again.captions) == {
        "a dark half", "a light half"}  # fmt: skip


def test_a_stopped_call_goes_on_and_does_nothing_twice(folder, tmp_path):
    config, parts, whole = Augmentation(batch_size=4), tmp_path / "parts", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        augment(Model(stop_after=3), data(folder), parts, config)
    assert len(lines(parts / "metadata.jsonl")) == 12
    with (parts / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "cut sho')
    assert augment(Model(), data(folder), parts, config) == {
        "made": 12, "left_out": 0, "before": 12}  # fmt: skip
    augment(Model(), data(folder), whole, config)
    for row in lines(whole / "metadata.jsonl"):
        name = row["file_name"]
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert augment(Model(), data(folder), whole, config)["made"] == 0
    with pytest.raises(SdjaxError, match=r"other settings, strength \[0.5\], now \[0.9\]"):
        augment(Model(), data(folder), whole, Augmentation(batch_size=4, strength=(0.9,)))


def test_the_filter_leaves_out_what_a_classifier_takes_for_another_class(tmp_path):
    folder, out = write(tmp_path / "real", 6, seed=1), tmp_path / "more"

    class Mirrors(Model):
        """Every other picture becomes one of the other class."""

        def generate(self, prompt, *, image, **options):
            image = [255 - x if i % 2 else x for i, x in enumerate(image)]
            return super().generate(prompt, image=image, **options)

    counts = augment(Mirrors(), data(folder), out, Augmentation(per_image=2, filter=0.5))
    assert counts["made"] + counts["left_out"] == 24
    assert 10 <= counts["left_out"] <= 14
    kept, others = lines(out / "metadata.jsonl"), lines(out / "left_out.jsonl")
    assert min(row["probability"] for row in kept) >= 0.5
    assert max(row["probability"] for row in others) < 0.5
    assert not any((out / row["file_name"]).exists() for row in others)


def test_what_cannot_be_used_is_one_line(folder, tmp_path):
    (folder / "empty").mkdir()
    with pytest.raises(SdjaxError, match="class 'empty' has no pictures"):
        augment(Model(), data(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "a.png")
    with pytest.raises(SdjaxError, match="a.png has no class"):
        augment(Model(), data(flat), tmp_path / "out")
    with pytest.raises(SdjaxError, match="not of an augmentation"):
        (folder / "empty").rmdir()
        augment(Model(), data(folder), flat)
    for wrong, told in (({"strength": (0.0,)}, "strength must be in"), ({"filter": 1.0}, "filter"),
                        ({"prompt": "a {thing}"}, "prompt may hold"), ({"per_image": 0}, "per_i")):
        with pytest.raises(SdjaxError, match=told):
            Augmentation(**wrong)


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    """Folders of real, made and test pictures, and the protocol's settings."""
    tmp = tmp_path_factory.mktemp("protocol")
    real, test = write(tmp / "real", 4, seed=2), write(tmp / "test", 60, seed=3)
    augment(Model(), data(real), tmp / "more", Augmentation(per_image=3))
    return Protocol(str(real), str(tmp / "more"), str(test), image_size=SIDE, seeds=2, updates=20,
                    out=str(tmp / "out"))  # fmt: skip


def test_the_protocol_trains_all_arms_and_tells_the_gain(protocol):
    results = evaluate_augmentation(None, protocol)
    assert set(results["arms"]) == {"real", "standard", "synthetic", "synthetic only"}
    for arm in results["arms"].values():
        assert len(arm["accuracy"]) == 2 and min(arm["accuracy"]) > 0.7
    assert results["counts"] == {"real": 8, "synthetic": 24, "test": 120, "classes": 2}
    pairs = [results["arms"][name]["accuracy"] for name in ("synthetic", "standard")]
    assert results["gain"]["mean"] == pytest.approx(np.subtract(*pairs).mean())
    # They are their own sources, a little darker.
    assert results["nearest"]["ratio"] < 0.5
    written = json.loads(Path(protocol.out, "augmentation.json").read_text())
    assert written["gain"] == results["gain"]


def test_the_protocol_refuses_leaks(protocol, tmp_path):
    others = write(tmp_path / "others", 2, seed=5)
    with pytest.raises(SdjaxError, match="was made of dark/2.png, which is not in"):
        evaluate_augmentation(None, replace(protocol, real=str(others)))
    with pytest.raises(SdjaxError, match="test pictures must be others"):
        evaluate_augmentation(None, replace(protocol, test=protocol.real))
    with pytest.raises(SdjaxError, match="differ in their classes: red"):
        red = write(tmp_path / "red", 1, seed=6, classes=("dark", "light", "red"))
        evaluate_augmentation(None, replace(protocol, test=str(red)))
    with pytest.raises(SdjaxError, match="--synthetic is needed"):
        evaluate_augmentation(None, replace(protocol, synthetic=""))


def test_the_interval_is_students():
    # Differences 1, 2, 3: mean 2, deviation 1, t of 2 degrees 4.3027.
    found = gain([2, 4, 6], [1, 2, 3])
    assert found["mean"] == 2
    assert found["interval"] == pytest.approx(
        [2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rel=1e-5)


def test_copies_are_told_from_new_pictures(folder, tmp_path):
    real = labelled_pictures(DataConfig(source=f"folder:{folder}", image_size=SIDE,
                                        require_captions=False))  # fmt: skip
    assert nearness(real, real) == {"ratio": pytest.approx(0, abs=1e-6), "copies": 1}
    fresh = labelled_pictures(DataConfig(source=f"folder:{write(tmp_path / 'new', 9, seed=9)}",
                                         image_size=SIDE, require_captions=False))  # fmt: skip
    assert nearness(real, fresh)["copies"] == 0
    assert 0.8 < nearness(real, fresh)["ratio"] < 1.2


def test_epochs_are_whole_and_the_classifier_learns():
    rows = shuffled(10, updates=5, batch=4, seed=0)
    assert rows.shape == (5, 4)
    assert (np.sort(rows.reshape(2, 10)) == np.arange(10)).all()
    draw = np.random.default_rng(4)
    images = np.stack([picture(draw, i % 2) for i in range(80)])
    found = Classifier.fitted(images[:40], np.arange(40) % 2, 2, updates=40)
    assert found.accuracy(images[40:], np.arange(40) % 2) > 0.9
    np.testing.assert_allclose(found.probabilities(images).sum(-1), 1, rtol=1e-5)
