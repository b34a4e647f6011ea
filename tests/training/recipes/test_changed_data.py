"""Training goes on with the pictures and captions that are there now, and tells what has changed."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from PIL import Image

import main
from sdjax import VAE, parallel
from sdjax.data import DataConfig, open_source
from sdjax.text import Tokenizer
from sdjax.training import ArrayBatches, LatentObjective
from sdjax.training.loop import fit as loop
from sdjax.training.loop import settings
from sdjax.training.recipes import known_data, material
from sdjax.training.recipes.datasets import encode_all
from sdjax.training.recipes.latent_cache import cached_latents
from sdjax.training.recipes.material import Material
from tests.training.small import DATA, LATENT

COLOURS = "red", "green", "blue", "black", "white", "grey", "yellow", "cyan"


def draw(folder, name, colour, caption=None):
    Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(caption or f"a {colour} square")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        draw(folder, number, colour)
    return folder


def change(folder):
    """Two added, one changed, one removed, two captions corrected; another's time alone is new."""
    draw(folder, 8, "orange", "a lovely orange zebra")
    draw(folder, 9, "pink")
    draw(folder, 2, "navy", "a blue square")
    (folder / "1.png").unlink()
    (folder / "3.txt").write_text("a coal black square")
    (folder / "4.txt").write_text("snow")
    os.utime(folder / "5.png")


CHANGES = "2 pictures added, 1 picture changed, 1 picture removed, 2 captions changed"


def random_params(init):
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))
    random = np.random.default_rng(0)
    return tree.unflatten([0.2 * random.normal(size=x.shape).astype(x.dtype) for x in leaves])


@pytest.fixture
def networks_untouched(monkeypatch):
    """Steps that draw their batches and learn nothing: what costs is the compiling of networks."""
    init, metrics = LatentObjective.init, {"loss": np.ones(1), "grad_norm": np.ones(1)}
    monkeypatch.setattr(
        LatentObjective, "init",
        lambda self, key, frozen: random_params(lambda key: init(self, key)),
    )
    monkeypatch.setattr(loop, "make_step", lambda *given: (
        lambda state, frozen, batch: (state.replace(step=state.step + 1), metrics)
    ))
    monkeypatch.setattr(LatentObjective, "sheet", lambda self, frozen, ids: (
        lambda ema: np.zeros((len(ids), 32, 32, 3), np.float32)
    ))


@pytest.mark.usefixtures("networks_untouched")
def test_the_next_run_s_batches_hold_what_is_there_now(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "small.py").write_text("from tests.training.small import LATENT as config")
    folder = tmp_path / "run"
    command = ["train", "--config", str(tmp_path / "small.py"), "--workdir", str(folder),
               "--data.source", f"folder:{pictures}", "--diffusion.steps", "8"]
    # Finished on other pictures; what it makes of these is nothing to this test.
    vae = VAE(LATENT.autoencoder.vae)
    vae.save_pretrained(random_params(vae.init), folder / "autoencoder/model")
    settings.keep(folder / "autoencoder/model", {"pictures": "5 (others)"})
    monkeypatch.setattr(parallel, "use_cpu_devices", lambda batch_sizes: None)
    assert main.main([*command, "--diffusion.max-minutes", "1e-9"]) == 3
    assert "the data has changed" not in capsys.readouterr().out

    change(pictures)
    batches, draw_batch, encoded = [], ArrayBatches.__next__, []
    monkeypatch.setattr(
        ArrayBatches, "__next__", lambda self: batches.append(draw_batch(self)) or batches[-1]
    )
    monkeypatch.setattr(
        material, "encode_all", lambda *given: encoded.append(len(given[2])) or encode_all(*given)
    )
    assert main.main(command) == 0
    assert encoded == [3]
    told = capsys.readouterr().out
    assert f"the data has changed since the last run in {folder}: {CHANGES}\n" in told
    for part in ("autoencoder/model", "tokenizer"):
        assert f"{folder}/{part} is finished and used as it is:\nchanged since: " in told

    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
    texts = [path.with_suffix(".txt").read_text() for path in sorted(pictures.glob("*.png"))]
    images = np.stack([np.asarray(Image.open(p)) for p in sorted(pictures.glob("*.png"))])
    vae, params = VAE.from_pretrained(folder / "autoencoder/model")
    means = encode_all(vae, params, images)[0]
    wanted = dict(zip(map(bytes, tokenizer.encode(texts)), means))
    seen = {bytes(ids): mean for b in batches for ids, mean in zip(b["ids"], b["mean"])}
    assert len(seen) == 9 and set(seen) == set(wanted)
    for ids, mean in seen.items():
        np.testing.assert_allclose(mean, wanted[ids], atol=1e-5)

    (pictures / "5.txt").write_text("a dull square")
    assert main.main(command) == 0
    told = capsys.readouterr().out
    assert f"{folder}: 1 caption changed\n" in told
    assert f"{folder}/diffusion is finished and used as it is:\nchanged since: pictures" in told
    assert main.main(command) == 0
    assert "the data has changed" not in capsys.readouterr().out


def test_a_tokenizer_is_learned_anew_until_a_network_has_begun_with_it(pictures, tmp_path, capsys):
    recipe = dataclasses.replace(LATENT, data=DataConfig(f"folder:{pictures}", image_size=32))

    def words(begun):
        return Material(recipe, tmp_path).tokenizer(begun).vocabulary

    first = words(False)
    assert capsys.readouterr().out == "learning a tokenizer from 8 captions\n"
    assert words(False) == first and capsys.readouterr().out == ""
    draw(pictures, 9, "pink", "zebra zebra zebra")
    assert words(True) == first
    assert f"{tmp_path}/tokenizer is finished and used as it is:" in capsys.readouterr().out
    assert "zebra</w>" in words(False) and "zebra</w>" not in first
    assert f"{tmp_path}/tokenizer is learned anew:" in capsys.readouterr().out


def test_latents_are_made_of_what_the_file_lacks(tmp_path):
    asked = []

    def compute(indices):
        """Item 3 is broken; others have their index as latent."""
        asked.append(list(indices))
        usable = np.array([i for i in indices if i != 3], int)
        mean = usable.astype(np.float32)
        return [{"index": usable, "mean": mean, "std": mean, "caption": usable.astype(str)}]

    def latents(keys, made_of="autoencoder"):
        (arrays,) = cached_latents(tmp_path / "latents.npz", made_of, keys, compute)
        return arrays

    first = latents(["a", "b", "c", "", "e"])
    np.testing.assert_array_equal(first["index"], [0, 1, 2, 4])
    again = latents(["a", "b", "c", "", "e"])
    np.testing.assert_array_equal(again["mean"], [0, 1, 2, 4])
    moved = latents(["e", "x", "a", "", "a", "y"])
    np.testing.assert_array_equal(moved["index"], [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(moved["mean"], [4, 1, 0, 0, 5])
    latents(["e", "x"], "another autoencoder")
    assert asked == [[0, 1, 2, 3, 4], [3], [1, 3, 5], [0, 1]]
    assert cached_latents(tmp_path / "none.npz", "", ["a"], lambda indices: []) == []


def test_latents_of_several_sizes_are_kept_together(tmp_path):
    asked = []

    def compute(indices):
        """Odd items are wider."""
        asked.append(list(indices))
        return [
            {"index": np.array(own), "mean": np.full((len(own), 1, width), own[0]),
             "std": np.zeros((len(own), 1, width)), "caption": np.array(own).astype(str),
             "time_ids": np.array(own, float)}
            for width, own in ((1, [i for i in indices if i % 2 == 0]),
                               (2, [i for i in indices if i % 2])) if own
        ]

    for keys in ("abcd", "abcd", "abcdef", "abxd"):
        sets = cached_latents(tmp_path / "latents.npz", "", list(keys), compute)
        assert [arrays["mean"].shape[2] for arrays in sets] == [1, 2]
        for number, arrays in enumerate(sets):
            np.testing.assert_array_equal(arrays["index"], np.arange(number, len(keys), 2))
            np.testing.assert_array_equal(arrays["time_ids"], arrays["index"])
    assert asked == [[0, 1, 2, 3], [4, 5], [2]]


def test_a_caption_that_is_gone_takes_its_picture_along(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(material, "encode_all", lambda vae, params, images: (images, images))
    data = DataConfig(f"folder:{pictures}", image_size=32, max_broken_share=0.5)
    recipe = dataclasses.replace(LATENT, data=data)

    def latents():
        (arrays,) = Material(recipe, tmp_path).latents(tmp_path, None, None)
        return arrays["caption"].tolist()

    assert latents() == [f"a {colour} square" for colour in COLOURS]
    (pictures / "2.txt").write_text("")
    assert latents() == [f"a {colour} square" for colour in COLOURS if colour != "blue"]


@pytest.mark.parametrize("damaged", ["", "{", "[]", json.dumps({"files": 3})])
def test_a_damaged_record_of_the_data_is_written_anew(damaged, pictures, tmp_path, capsys):
    from sdjax.training.recipes.known_data import tell_changes

    (tmp_path / "data.json").write_text(damaged)
    recipe = dataclasses.replace(LATENT, data=DataConfig(f"folder:{pictures}", image_size=32))
    tell_changes(tmp_path, Material(recipe, tmp_path).content)
    assert capsys.readouterr().out == ""
    draw(pictures, 9, "pink")
    tell_changes(tmp_path, Material(recipe, tmp_path).content)
    assert capsys.readouterr().out.endswith(": 1 picture added\n")


def test_reading_a_large_folder_is_told(pictures, tmp_path, monkeypatch, capsys):
    source = open_source(dataclasses.replace(DATA, source=f"folder:{pictures}"))
    for quiet, lines in ((0.0, len(source)), (60.0, 0)):
        monkeypatch.setattr(known_data, "QUIET", quiet)
        known_data.content_of(source, tmp_path, len(source), read=True)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == lines
    monkeypatch.setattr(known_data, "QUIET", 0.0)
    known_data.tell_changes(tmp_path, known_data.content_of(source, tmp_path, len(source), True))
    assert f"{len(source)} of about {len(source)}" in capsys.readouterr().out
    known_data.content_of(source, tmp_path, len(source), read=True)
    assert not capsys.readouterr().out  # all are known
