"""The evaluations from end to end, with models whose right share is known."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sdjax import evaluation
from sdjax.data import DataConfig
from sdjax.data.oracle import placed
from sdjax.data.scenes import held_out, parse_caption
from sdjax.data.shapes import Shapes, draw
from sdjax.errors import SdjaxError
from sdjax.evaluation.generation import Generation, generate
from sdjax.evaluation.known import known_pictures
from sdjax.evaluation.reconstruction import reconstruct
from sdjax.evaluation.report import interval
from sdjax.evaluation.shapes_accuracy import shapes_captions, spread
from sdjax.folders import check_writable, writable_folder
from sdjax.pipeline.results.pictures import PictureFolder


class Draughtsman:
    """Draws shapes captions right, save that held-out ones get a wrong background."""

    def __init__(self):
        self.calls = []

    def generate(self, prompt, *, seed, output, **options):
        self.calls.append((len(prompt), list(seed), options))
        images = []
        for caption in prompt:
            scene = parse_caption(caption)
            picture = draw(scene, [(32.0, 32.0)])
            if held_out(scene):
                picture[(picture == picture[0, 0]).all(-1)] = (128, 0, 128)
            images.append(picture.astype(np.float32) / 127.5 - 1)
        return np.stack(images)


class Album:
    """Gives the remembered picture of a caption, or of another one where told so."""

    def __init__(self, pictures, wrong=()):
        self.pictures, self.wrong = pictures, set(wrong)

    def generate(self, prompt, *, seed, output, **options):
        names = sorted(self.pictures)
        chosen = [names[0] if name in self.wrong else name for name in prompt]
        return np.stack([self.pictures[name] for name in chosen]).astype(np.float32) / 127.5 - 1


@pytest.fixture
def folder(tmp_path):
    """Twelve captioned noise pictures of 16x16 in a folder, and the same as a dict."""
    random, pictures = np.random.default_rng(0), {}
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        pictures[f"picture {i}"] = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pictures[f"picture {i}"]).save(tmp_path / f"pictures/{i:02}.png")
        (tmp_path / f"pictures/{i:02}.txt").write_text(f"picture {i}")
    return tmp_path / "pictures", pictures


def test_generate_batches_and_seeds():
    model = Draughtsman()
    captions = shapes_captions(5)
    made = generate(model, captions, Generation(seed=7, batch_size=2, steps=3, sampler="ddim"))
    assert made.shape == (5, 64, 64, 3) and made.dtype == np.uint8
    assert [size for size, _, _ in model.calls] == [2, 2, 2]
    assert [seeds for _, seeds, _ in model.calls] == [[7, 8], [9, 10], [11, 11]]
    assert model.calls[0][2] == {"steps": 3, "sampler": "ddim", "progress": False, "weighting": None}
    np.testing.assert_array_equal(made[3:4], generate(model, captions[3:4]))
    with pytest.raises(SdjaxError, match="no captions"):
        generate(model, [])


def test_shapes_captions_are_distinct_and_of_their_split():
    train, heldout = shapes_captions(50), shapes_captions(5000, split="heldout")
    assert len(set(train)) == 50 and not any(held_out(parse_caption(c)) for c in train)
    assert 100 < len(set(heldout)) == len(heldout) < 250  # all there are: about a fifth of 840
    assert all(held_out(parse_caption(c)) for c in heldout)
    assert len(shapes_captions(30, objects="two", seed=3)) == 30


def test_shapes_accuracy(tmp_path):
    config = evaluation.ShapesAccuracy(captions=24, sheet=4, out=str(tmp_path))
    results = evaluation.run(config, Draughtsman)
    assert results["train"]["accuracy"]["all"] == 1
    assert results["heldout"]["accuracy"]["all"] == 0
    assert results["heldout"]["accuracy"]["background"] == 0
    assert all(value > 0 for value in results["train"]["spread"].values())
    assert json.loads((tmp_path / "shapes.json").read_text()) == results
    assert Image.open(tmp_path / "shapes_train.png").width > 4 * 128


def test_the_spread_is_that_of_what_was_drawn():
    source = Shapes(image_size=64)
    items, layouts = [source[i] for i in range(40)], [source.layout(i) for i in range(40)]
    images, captions = np.stack([i["image"] for i in items]), [i["caption"] for i in items]
    centres = np.array([centre for _, (centre,) in layouts])
    square = np.array([scene.things[0].shape in ("square", "circle") for scene, _ in layouts])
    np.testing.assert_allclose(placed(images)[square][:, 1::-1], centres[square], atol=0.6)
    found = spread(images, captions)
    assert found["right"] == pytest.approx(centres[:, 0].std(), abs=0.5)
    assert found["size"] < 0.3 < found["down"]
    same = spread(images[:1].repeat(4, 0), captions[:1] * 4)
    assert same == {"down": 0, "right": 0, "size": 0}
    assert spread(np.zeros_like(images), captions) is None


def test_similarity_of_a_folder(folder, tmp_path):
    path, _ = folder
    data = DataConfig(source=f"folder:{path}", image_size=16)
    config = evaluation.Similarity(folder=str(path), images=6, features="pixels", data=data,
                                   neighbours=2, out=str(tmp_path / "out"))
    results = evaluation.run(config, None)  # no model is asked for
    assert results["counts"] == {"real": 6, "generated": 6, "features": 192}
    assert results["generated"]["frechet"] < results["real"]["frechet"]
    assert results["generated"]["precision"] == 1
    assert json.loads((tmp_path / "out/similarity.json").read_text()) == results


def test_sheets_are_not_counted_as_pictures(folder, tmp_path):
    path, pictures = folder
    made = [Image.fromarray(picture) for picture in list(pictures.values())[:4]]
    written = PictureFolder(tmp_path / "made")
    first, *_ = [written.save(picture, {}) for picture in made]
    written.save_sheet(made, "abcd", first)
    config = evaluation.Similarity(folder=str(tmp_path / "made"), features="pixels", neighbours=2,
                                   data=DataConfig(source=f"folder:{path}", image_size=16),
                                   out=str(tmp_path / "out"))
    assert evaluation.run(config, None)["counts"]["generated"] == 4
    assert len(list((tmp_path / "made").iterdir())) == 5


def test_figures_of_another_model_are_kept(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    config = evaluation.ShapesAccuracy(captions=2, sheet=1, out=str(tmp_path / "out"))

    def measured(config=config, **options):
        return evaluation.run(config, Draughtsman, **options)

    def written():
        return sorted(path.name for path in (tmp_path / "out").iterdir())

    first = ["shapes.json", "shapes_heldout.png", "shapes_train.png"]
    results = measured(model=str(model))
    assert (results["model"], results["settings"]["captions"]) == (str(model), 2)
    measured(model=str(model))
    assert written() == first  # the same again
    assert "figures of another model" not in capsys.readouterr().out
    measured(model="another")
    measured(dataclasses.replace(config, captions=1), model=str(model))
    (model / "weights").write_text("trained on")
    measured(model=str(model))
    assert written() == sorted(
        first + [name.replace("shapes", f"shapes-{i}") for i in (2, 3, 4) for name in first])
    assert json.loads((tmp_path / "out/shapes.json").read_text()) == results
    assert json.loads((tmp_path / "out/shapes-2.json").read_text())["model"] == "another"
    assert "figures of another model or of other settings" in capsys.readouterr().out
    # Whoever gives no name, or finds what this program did not write, overwrites nothing.
    (tmp_path / "out/shapes.json").write_text("{}")
    measured()
    assert "shapes-5.json" in written() and (tmp_path / "out/shapes.json").read_text() == "{}"


def test_similarity_of_a_model(folder, tmp_path):
    path, pictures = folder
    data = DataConfig(source=f"folder:{path}", image_size=16)
    out = str(tmp_path / "out")
    config = evaluation.Similarity(images=12, features="edges", data=data, out=out)
    results = evaluation.run(config, lambda: Album(pictures))
    assert results["generated"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert results["generated"]["recall"] == 1 and results["real"] is None


def test_nearest_neighbour(folder, tmp_path):
    path, pictures = folder
    data = DataConfig(source=f"folder:{path}", image_size=16)
    config = evaluation.NearestNeighbour(captions=8, data=data, out=str(tmp_path / "out"))
    drawn = [row["caption"] for row in
             evaluation.run(config, lambda: Album(pictures))["captions"]]
    assert len(set(drawn)) == 8
    wrong = [name for name in drawn if name != "picture 0"][:2]
    results = evaluation.run(config, lambda: Album(pictures, wrong))
    assert results["first"] == 0.75 and results["known"] == 12
    assert [row["caption"] for row in results["captions"] if not row["right"]] == wrong
    assert (tmp_path / "out/nearest.png").exists()
    with pytest.raises(SdjaxError, match="image_size"):
        evaluation.run(evaluation.NearestNeighbour(
            data=DataConfig(source=f"folder:{path}", image_size=8), out=str(tmp_path)),
            lambda: Album(pictures))
    assert evaluation.NearestNeighbour().data.subset == "core"  # what the shipped model knows
    with pytest.raises(SdjaxError, match="evaluate shapes"):
        evaluation.NearestNeighbour(data=DataConfig())


class Brightener:
    """An autoencoder that gives pictures back a little brighter."""

    def encode(self, params, images):
        return images * params["scale"]

    def decode(self, params, latents):
        return latents / params["scale"] + 0.02


def test_reconstruction(tmp_path):
    class Model:
        vae, params = Brightener(), {"vae": {"scale": np.float32(0.5)}}

    config = evaluation.Reconstruction(images=10, batch_size=4, sheet=3, out=str(tmp_path))
    results = evaluation.run(config, Model)
    # A shift by 0.02 of a range of 2, rounded to 3 of 255 levels at most.
    assert 38.5 < results["psnr"] < 42 and results["images"] == 10
    assert results["oracle"] == {"before": 1, "after": 1}
    assert (tmp_path / "reconstruction.png").exists()


def test_reconstruct_keeps_the_order():
    images = np.random.default_rng(0).integers(0, 250, (7, 8, 8, 3), np.uint8)
    made = reconstruct(Brightener(), {"scale": np.float32(2)}, images, batch_size=3)
    assert made.shape == images.shape and abs(made.astype(int) - images - 2.5).max() <= 1


def test_known_pictures_are_drawn_once(folder):
    path, _ = folder
    data = DataConfig(source=f"folder:{path}", image_size=16)
    images, captions = known_pictures(data, 12, seed=1)
    assert len(images) == len(set(captions)) == 12 and captions != known_pictures(data)[1]
    assert captions == known_pictures(data, 12, seed=1)[1]


def test_interval_and_folder(tmp_path):
    low, high = interval(0.9, 100)
    assert low == pytest.approx(0.8256, abs=1e-4) and high == pytest.approx(0.9448, abs=1e-4)
    assert interval(1, 5)[1] == 1 and interval(0, 5)[0] == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(SdjaxError, match="cannot write to the folder"):
        writable_folder(tmp_path / "file")
    with pytest.raises(SdjaxError, match="cannot write to the folder .* is a file"):
        check_writable(tmp_path / "file" / "in it")
    check_writable(tmp_path / "new" / "newer")
    assert not (tmp_path / "new").exists()


def test_run_names_what_it_knows():
    with pytest.raises(SdjaxError, match="ShapesAccuracy"):
        evaluation.run(object(), None)
