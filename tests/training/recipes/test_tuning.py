"""Recipes on top of a model from start to finish, on random networks of a few thousand weights."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.data import DataConfig
from sdjax.data.tags import CaptionConfig
from sdjax.errors import SdjaxError
from sdjax.training import (
    OptimizerConfig,
    PriorConfig,
    Recipe,
    TuningRun,
    adaptations,
    load_config,
    train,
    with_overrides,
)
from sdjax.training.objectives.tuning import TuningSheet
from sdjax.weights.tensors import read_safetensors
from tests.training.small import small_model

PROMPT = "a large red circle"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    small_model([PROMPT, "blue square"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{PROMPT}, blue square, <new>")
    return folder


def recipe(model, pictures, adaptation, **options):
    run = {
        "steps": 4, "batch_size": 2, "log_every": 2, "checkpoint_every": 2, "sheet_every": 0,
        "optimizer": OptimizerConfig(warmup_steps=1, learning_rate=1e-2),
        "sheet": TuningSheet(images=2, steps=2, guidance_scale=1.0), "ema_decay": 0.0, **options,
    }
    return Recipe(
        data=DataConfig(source=f"folder:{pictures}", image_size=16), model=str(model),
        diffusion=TuningRun(adaptation=adaptation, **run),
    )


@pytest.fixture
def no_sheets(monkeypatch):
    """Sample pictures are not what a test is about."""
    stage = importlib.import_module("sdjax.training.recipes.tuning")
    blank = np.zeros((1, 16, 16, 3), np.float32)
    monkeypatch.setattr(stage.Tuning, "sheet", lambda self, *given: lambda ema: (blank, None))


def test_a_lora_from_start_to_finish_and_after_a_stop(model, pictures, tmp_path, no_sheets):
    lora = adaptations.LoRA(rank=2, text_encoder=True, rank_dropout=0.3,
                            targets=("attn2.to_k", "q_proj"))
    asked = recipe(model, pictures, lora, captions=CaptionConfig(shuffle=True, keep=1))
    assert train(asked, tmp_path / "whole")
    state, metadata = read_safetensors(tmp_path / "whole/lora.safetensors")
    assert any(key.startswith("lora_te_text_model_encoder_layers_0_") for key in state)
    assert metadata["ss_network_dim"] == "2" and metadata["ss_base_model_version"] == "sd_v1"
    assert json.loads(metadata["ss_tag_frequency"])[pictures.name]["blue square"] == 4
    half = dataclasses.replace(asked, diffusion=dataclasses.replace(
        asked.diffusion, max_minutes=1e-6))
    assert not train(half, tmp_path / "halves")
    assert train(asked, tmp_path / "halves")
    again, _ = read_safetensors(tmp_path / "halves/lora.safetensors")
    assert set(state) == set(again)
    for key, tensor in state.items():
        np.testing.assert_array_equal(tensor.load(), again[key].load())
    sd = sdjax.StableDiffusion.from_pretrained(model)
    sd.load_lora(tmp_path / "whole/lora.safetensors")


@pytest.mark.parametrize(("name", "options", "result"), [
    pytest.param("Full", {}, "model/unet/config.json", marks=pytest.mark.full),
    ("LearnedWord", {}, "word.safetensors"),
    pytest.param("ControlNet", {"beside": "edges"}, "controlnet/config.json",
                 marks=pytest.mark.full),
    pytest.param("Inpaint", {}, "model/unet/config.json", marks=pytest.mark.full),
])
def test_other_adaptations_leave_their_results(model, pictures, tmp_path, name, options, result):
    adaptation = getattr(adaptations, name)()
    assert train(recipe(model, pictures, adaptation, **options, steps=2), tmp_path)
    assert (tmp_path / result).is_file()


def test_what_is_kept_out_judges_and_the_best_is_exported(
    model, pictures, tmp_path, monkeypatch, no_sheets
):
    lora = adaptations.LoRA(rank=1, targets=("attn2.to_k",))
    asked = recipe(model, pictures, lora, cache_texts=True)
    asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, validation=0.25))
    losses = iter([0.1, 0.2])
    stage = importlib.import_module("sdjax.training.recipes.tuning")
    sets, judged = [], []

    def scripted(self, kept_out):
        judged.extend(kept_out)
        true = validation(self, kept_out)

        def judge(ema, frozen):
            values = [true(ema, frozen) for _ in range(2)]
            assert values[0] == values[1] > 0
            return next(losses)

        return judge

    validation, stream = stage.Tuning.validation, stage.Tuning.batches
    monkeypatch.setattr(stage.Tuning, "validation", scripted)
    monkeypatch.setattr(
        stage.Tuning, "batches", lambda self, own: sets.extend(own) or stream(self, own))
    assert train(asked, tmp_path)
    assert len(sets[0]["index"]) == 3 and len(judged[0]["index"]) == 1
    assert not set(sets[0]["index"]) & set(judged[0]["index"])
    told = json.loads((tmp_path / "result.json").read_text())
    assert told == {"result": "lora.safetensors", "step": 2, "steps": 4, "validation_loss": 0.1}
    _, metadata = read_safetensors(tmp_path / "lora.safetensors")
    assert metadata["ss_steps"] == "2"
    with np.load(tmp_path / "texts.npz") as kept:
        assert len(kept["key"]) == 2  # their one caption, and the empty one


def test_dreambooth_makes_the_pictures_of_its_class(model, pictures, tmp_path, no_sheets):
    lora = adaptations.LoRA(rank=1, targets=("attn2.to_k",))
    asked = recipe(model, pictures, lora, steps=2,
                   prior=PriorConfig("a blue square", count=3, batch_size=2, weight=0.5))
    assert train(asked, tmp_path)
    assert sorted(path.name for path in (tmp_path / "class").glob("*.png")) == [
        "00000-class.png", "00001-class.png", "00002-class.png"]


@pytest.mark.parametrize(("change", "message"), [
    ({"model": None}, "name it by --model"),
    ({"adaptation": adaptations.LoRA(rank=500)}, "a rank of 500 is above"),
    ({"adaptation": adaptations.LearnedWord(word="a")}, "'a' is known already"),
    ({"adaptation": adaptations.LearnedWord(word="<other>")}, "no caption has the word"),
    ({"adaptation": adaptations.Full(layers="nothing")}, "names no parameter"),
    ({"adaptation": adaptations.LoRA(rank=1, targets=("to_z",))}, "names no weight"),
    ({"adaptation": adaptations.ControlNet()}, "needs a picture beside"),
    ({"data": {"source": "folder:nowhere"}}, "expected a folder of pictures"),
    ({"data": {"validation": 0.9}}, "leaves none to train on"),
    ({"sheet": TuningSheet(options=(("sharpness", 3),))}, "no option 'sharpness' of generate"),
])
def test_what_cannot_be_trained_is_told_first(model, pictures, tmp_path, change, message):
    sheet = {"sheet": change["sheet"]} if "sheet" in change else {}
    asked = recipe(model, pictures, change.get("adaptation", adaptations.LoRA(rank=1)), **sheet)
    asked = dataclasses.replace(
        asked, data=dataclasses.replace(asked.data, **change.get("data", {})))
    work = tmp_path / "new" / "work"
    with pytest.raises(SdjaxError, match=message):
        train(dataclasses.replace(asked, model=change.get("model", str(model))), work)
    assert not (tmp_path / "new").exists()


def test_pictures_that_cannot_be_used_are_told(model, pictures, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for i in range(2):
        Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(bare / f"{i}.png")
    cut = {"buckets": True, "bucket_enlarge": False, "bucket_step": 32, "image_size": 64}
    cases = [({"source": f"folder:{bare}"}, "has no caption: there is no 0.txt beside it"),
             ({"source": f"folder:{pictures}", **cut}, "24x20 is too small for a bucket")]
    for change, message in cases:
        asked = recipe(model, pictures, adaptations.LoRA(rank=1))
        data = dataclasses.replace(asked.data, **change)
        with pytest.raises(SdjaxError, match=message) as told:
            train(dataclasses.replace(asked, data=data), tmp_path / "work")
        assert "\n" not in str(told.value) and not (tmp_path / "work").exists()


def test_the_refiner_is_told_a_score_in_place_of_a_size(model, pictures, monkeypatch):
    from types import SimpleNamespace

    from sdjax.training.objectives.tuning import tuned
    from sdjax.training.recipes import sets

    small = sdjax.StableDiffusion.from_pretrained(model)
    asked = recipe(model, pictures, adaptations.LoRA(rank=1), aesthetic_score=5.5)
    objective = tuned(asked.diffusion, adaptations.Networks.of(small), small.scheduler_config)
    latents = {"caption": np.array(["a"] * 2), "index": np.arange(2),
               "mean": np.zeros((2, 8, 12, 8), np.float32)}
    material = SimpleNamespace(source=None, known_captions=list, latents=lambda *given: [dict(latents)])
    sizes = "original_size", "crop", "target_size"
    for told, ids in ((sizes, [16, 24, 0, 0, 16, 24]), ((), None),
                      ((*sizes[:2], "aesthetic_score"), [16, 24, 0, 0, 5.5])):
        monkeypatch.setattr(sets, "names", lambda *given, told=told: told)
        (found,) = sets.Sets(asked, objective, small, small.params).of(material)
        assert found.get("time_ids", np.array([None])).tolist() == ([ids] * 2 if ids else [None])


def test_the_command_line_names_the_model():
    changed = with_overrides(load_config("lora"), [
        "--model", "sd15", "--data.source", "folder:mine", "--diffusion.adaptation.rank", "8"])
    assert changed.model == "sd15" and changed.diffusion.adaptation.rank == 8


def test_folders_of_sd_scripts_in_buckets_mirrored_and_masked(
    model, tmp_path, monkeypatch, no_sheets
):
    folder, masks = tmp_path / "pictures", tmp_path / "masks"
    random = np.random.default_rng(0)
    sizes = {"3_red circle/a": (40, 20), "3_red circle/b": (42, 20), "1_x/c": (20, 20)}
    for name, size in sizes.items():
        for place, values in ((folder, 256), (masks, 2)):
            path = place / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, values, (*size[::-1], 3), np.uint8)
            Image.fromarray(pixels * (255 // (values - 1))).save(path)
    lora = adaptations.LoRA(rank=1, targets=("attn2.to_k",))
    asked = recipe(model, folder, lora, masks=str(masks), steps=3)
    asked = dataclasses.replace(asked, data=dataclasses.replace(
        asked.data, buckets=True, bucket_smallest=8, bucket_largest=32, bucket_step=4, flip=True))
    stage, seen = importlib.import_module("sdjax.training.recipes.tuning"), []
    stream = stage.Tuning.batches

    def watched(self, sets):
        seen.extend(sets)
        return stream(self, sets)

    monkeypatch.setattr(stage.Tuning, "batches", watched)
    assert train(asked, tmp_path / "work")
    shapes = {tuple(arrays["mean"].shape[:3]): arrays for arrays in seen}
    assert len(shapes) == 2
    wide = next(arrays for shape, arrays in shapes.items() if shape[1] != shape[2])
    assert wide["caption"].tolist() == ["red circle"] * 4  # two, and mirrored
    count = len(wide["mean"]) // 2
    np.testing.assert_array_equal(wide["mask"][count:], wide["mask"][:count, :, ::-1])
    assert wide["mask"].shape[:3] == wide["mean"].shape[:3]

    # What was encoded is kept, bucket by bucket, and what is new is encoded, plain and mirrored.
    kept, asked_for = importlib.import_module("sdjax.training.recipes.material"), []
    encode = kept.encode_all
    monkeypatch.setattr(kept, "encode_all", lambda vae, params, images: (
        asked_for.append(images.shape[:3]) or encode(vae, params, images)))
    seen.clear()
    assert train(asked, tmp_path / "work") and not asked_for
    again = {tuple(arrays["mean"].shape[:3]): arrays for arrays in seen}
    for shape, arrays in shapes.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again[shape][name], array)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "1_x/c.png")
    assert train(asked, tmp_path / "work")
    assert asked_for == [(1, 16, 16)] * 2
