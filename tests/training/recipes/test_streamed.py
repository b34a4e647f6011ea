"""Training by shards, by what was encoded of them, and in work folders that are no local disk."""

import dataclasses
import json

import fsspec
import jax
import numpy as np
import pytest

import main
from sdjax import UNet, parallel
from sdjax.data import DataConfig
from sdjax.errors import SdjaxError
from sdjax.mirror import mirrored
from sdjax.stores import Store
from sdjax.training import Recipe, TuningRun, train
from sdjax.training.adaptations import ControlNet, LoRA
from sdjax.training.recipes import train as training
from sdjax.training.recipes.encode_run import encode_recipe
from sdjax.training.recipes.tuning import Tuning
from tests.data.shards import write_tars
from tests.training.small import LATENT, PIXELS, RUN, small_model

SIZES = (7, 5)
RUN = {**RUN, "steps": 3, "checkpoint_every": 3, "log_every": 1}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(a folder of shards, that of a model)."""
    folder = tmp_path_factory.mktemp("given")
    tars = write_tars(folder / "tars", SIZES, size=lambda n: (40, 36))
    small_model([f"picture {n}" for n in range(12)]).save_pretrained(folder / "model")
    return tars, folder / "model"


def recipe(given, source=None, **run):
    tars, model = given
    data = DataConfig(source or f"tar:{tars}", image_size=32, window=4, streams=4)
    sheet = dataclasses.replace(TuningRun().sheet, images=2, steps=1)
    return Recipe(data=data, model=str(model), diffusion=TuningRun(
        **RUN, adaptation=LoRA(rank=2), sheet=sheet, caption_dropout=0.3, **run))


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture
def without_sheets(monkeypatch):
    """They take longest to compile."""
    monkeypatch.setattr(Tuning, "sheet", lambda *given: None)
    monkeypatch.setattr(training, "_captioned", lambda *given: None)


@pytest.mark.full
def test_what_was_encoded_trains_as_the_pictures_do(given, tmp_path, without_sheets):
    assert train(recipe(given), tmp_path / "pictures")
    encode_recipe(recipe(given, cache_texts=True), str(tmp_path / "encoded"))
    cached = recipe(given, source=f"encoded:{tmp_path / 'encoded'}", cache_texts=True)
    assert train(cached, tmp_path / "cached")
    first, second = (losses(tmp_path / n / "diffusion") for n in ("pictures", "cached"))
    assert len(first) == 3
    np.testing.assert_allclose(second, first, rtol=2e-6)


def test_what_is_encoded_once_is_made_anew_where_it_lacks_and_trains(
    given, tmp_path, without_sheets
):
    out, encoding = tmp_path / "encoded", recipe(given, cache_texts=True)
    with pytest.raises(SdjaxError, match="cache_texts does not go with data.source tar:"):
        train(encoding, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert encode_recipe(encoding, str(out)) == sum(SIZES)
    files = sorted(path.name for path in out.iterdir())
    assert files == ["000000.tar", "000001.tar", "encoded.json", "index"]

    (out / "000001.tar").unlink()
    before = (out / "000000.tar").stat().st_mtime_ns
    assert encode_recipe(encoding, str(out)) == SIZES[1]
    assert (out / "000000.tar").stat().st_mtime_ns == before
    with pytest.raises(SdjaxError, match="encoded otherwise: dtype 'float32' -> 'float16'"):
        encode_recipe(encoding, str(out), "float16")

    trained = recipe(given, source=f"encoded:{out}", cache_texts=True)
    assert train(trained, tmp_path / "cached")
    assert np.isfinite(losses(tmp_path / "cached" / "diffusion")).all()
    assert (tmp_path / "cached" / "lora.safetensors").exists()

    other = recipe(given, source=f"encoded:{out}", cache_texts=True, clip_skip=1)
    with pytest.raises(SdjaxError, match="encoded otherwise than .*clip_skip 0 -> 1"):
        train(other, tmp_path / "other")
    with pytest.raises(SdjaxError, match="has no encoded.json"):
        train(recipe(given, source=f"encoded:{given[0]}", cache_texts=True), tmp_path / "third")


def test_the_command_encodes_to_an_address(given, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latent.py").write_text("from tests.training.recipes.test_streamed import FROM_NOISE"
                                        " as config")
    command = ["data", "encode", "--config", "latent.py", "--out", "memory://encoded",
               "--pretrained", str(given[1]), "--data.source", f"tar:{given[0]}"]
    assert main.main(command) == 0, capsys.readouterr()
    assert "finished: memory://encoded" in capsys.readouterr().out
    names = [path.rpartition("/")[2] for path in Store("memory://encoded").find("memory://encoded")]
    assert names == ["000000.tar", "000001.tar", "encoded.json"] + names[3:]


FROM_NOISE = Recipe(
    data=DataConfig(image_size=32), pretrained="given", examples=12,
    diffusion=dataclasses.replace(LATENT.diffusion, train_text_encoder=True),
)


def test_a_work_folder_at_an_address_is_trained_killed_resumed_and_exported(
    tmp_path, capsys, without_sheets
):
    there, whole = "memory://runs/pixels", PIXELS
    train(whole, tmp_path / "near")
    stopped = dataclasses.replace(whole, diffusion=dataclasses.replace(
        whole.diffusion, max_minutes=1e-9))
    assert not train(stopped, there)
    names = [p.removeprefix(there + "/") for p in Store(there).find(there)]
    assert "diffusion/checkpoints/1.whole" in names
    assert not any(name.startswith("model/") for name in names)

    # What a kill leaves of a step that is not brought there whole is not taken for one.
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/runs/pixels/diffusion/checkpoints/3/manifest.ocdbt", b"half")
    assert train(whole, there)
    assert f"going on after step 1 in {there}/diffusion" in capsys.readouterr().out
    near, params = UNet.from_pretrained(tmp_path / "near" / "model" / "unet")
    far, others = UNet.from_pretrained(there + "/model/unet")
    assert near.config == far.config
    jax.tree.map(np.testing.assert_array_equal, params, others)
    assert train(whole, there)
    assert "all 4 steps are done already" in capsys.readouterr().out
    place = there + "/diffusion/checkpoints/"
    steps = {p.removeprefix(place).split("/")[0] for p in Store(there).find(place)}
    assert steps == {"2", "4", "2.whole", "4.whole"}


def test_a_mirror_that_cannot_be_written_is_one_line(monkeypatch):
    memory = type(fsspec.filesystem("memory"))

    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    with pytest.raises(SdjaxError, match="memory://full/a.txt: OSError: No space left"):
        with mirrored("memory://full") as here:
            here.mkdir(exist_ok=True)
            (here / "a.txt").write_text("x")
            monkeypatch.setattr(memory, "put_file", full)


@pytest.mark.parametrize(("changes", "message"), [
    ({"data": {"buckets": True}}, "data.buckets does not go with data.source tar:"),
    ({"data": {"validation": 0.5}}, "data.validation"),
    ({"run": {"masks": "folder"}}, "diffusion.masks"),
    ({"run": {"adaptation": ControlNet()}}, "an adaptation that needs control"),
    ({"data": {"source": "encoded:x", "flip": True}}, "data.flip"),
])
def test_what_wants_pictures_in_memory_is_refused(given, changes, message):
    plain = recipe(given)
    with pytest.raises(SdjaxError, match=message):
        dataclasses.replace(
            plain, data=dataclasses.replace(plain.data, **changes.get("data", {})),
            diffusion=dataclasses.replace(plain.diffusion, **changes.get("run", {})))


def test_a_host_puts_its_rows_of_a_batch_where_they_belong():
    place = parallel.Placement(fsdp=2).laid_out()
    rows = place.rows(4)
    assert rows.tolist() == [0, 1, 2, 3]
    arrays = {"x": np.arange(16.0, dtype=np.float32).reshape(16, 1)}
    whole, parts = place.batch(arrays, (2, 2)), place.batch(arrays, (2, 2), (rows, 4))
    np.testing.assert_array_equal(whole["x"], parts["x"])
    assert whole["x"].sharding == parts["x"].sharding
