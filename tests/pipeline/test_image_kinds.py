"""Models that take more than a prompt: their files, which PyTorch diffusers reads as their kind."""

import dataclasses

import diffusers
import pytest
from PIL import Image

from sdjax.pipeline.model.files import read_model, write_model
from sdjax.weights.folder import DEPTH_EXTRAS
from sdjax.weights.layout import original_state
from sdjax.weights.modelspec import modelspec
from sdjax.weights.tensors import read_safetensors, write_safetensors
from tests.pipeline import peers
from tests.pipeline.test_kinds import assert_same_weights

NAMES = {
    "inpaint": "stable-diffusion-v1-inpainting",
    "pix2pix": "stable-diffusion-v1-edit",
    "depth": "stable-diffusion-v2-depth",
    "x4": "stable-diffusion-v2-x4-upscaler",
    "sdxl_inpaint": "stable-diffusion-xl-v1-base-inpainting",
    "refiner": "stable-diffusion-xl-v1-refiner",
}


@pytest.fixture(scope="module", params=NAMES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return peers.make(kind, tmp_path_factory.mktemp(kind))


def test_folder_and_single_file_both_ways(kind, folder, tmp_path):
    expected = peers.load(kind, folder)
    model = read_model(folder)
    assert modelspec(model.checkpoint, "a")["modelspec.architecture"] == NAMES[kind]
    write_model(model, tmp_path / "a.safetensors")
    again = read_model(tmp_path / "a.safetensors", config=folder)
    assert again.checkpoint.family == model.checkpoint.family
    assert again.checkpoint.low_res_scheduler == model.checkpoint.low_res_scheduler
    write_model(again, tmp_path / "b")
    # diffusers finds the pipeline by what our model_index.json says.
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "b")
    assert type(theirs) is peers.CLASSES[kind]
    assert_same_weights(theirs, expected)
    settings = {"force_zeros_for_empty_prompt", "requires_aesthetics_score"}
    for name in settings & set(expected.config):
        assert theirs.config[name] == expected.config[name], name
    for name in ("scheduler", "low_res_scheduler"):
        if hasattr(expected, name):
            assert getattr(theirs, name).config.items() >= {
                key: value for key, value in getattr(expected, name).config.items()
                if not key.startswith("_")
            }.items()  # fmt: skip


def test_single_file_is_read_there(kind, folder, tmp_path):
    path = tmp_path / "a.safetensors"
    write_model(read_model(folder), path)
    options = {"config": str(folder), "local_files_only": True}
    expected = peers.load(kind, folder)
    if kind == "depth":  # of that pipeline, diffusers reads the networks alone
        unet = diffusers.UNet2DConditionModel.from_single_file(path, subfolder="unet", **options)
        assert all((unet.state_dict()[k] == v).all() for k, v in expected.unet.state_dict().items())
        return
    theirs = peers.CLASSES[kind].from_single_file(path, **options)
    assert_same_weights(theirs, expected)


def test_depth_estimator_is_copied_or_its_absence_told(tmp_path):
    folder = peers.make("depth", tmp_path / "depth")
    theirs = peers.load("depth", folder)
    write_model(read_model(folder), tmp_path / "copy")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "copy")
    for key, value in theirs.depth_estimator.state_dict().items():
        assert (again.depth_estimator.state_dict()[key] == value).all()
    assert again.feature_extractor.to_dict() == theirs.feature_extractor.to_dict()
    write_model(read_model(folder), tmp_path / "a.safetensors")
    model = dataclasses.replace(read_model(tmp_path / "a.safetensors", config=folder), home=None)
    with pytest.warns(UserWarning, match="no depth_estimator and no feature_extractor"):
        write_model(model, tmp_path / "bare")
    extras = {name: getattr(theirs, name) for name in DEPTH_EXTRAS}
    bare = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "bare", **extras)
    assert_same_weights(bare, theirs)


def test_the_refiner_is_told_a_score(tmp_path):
    """Without which diffusers refuses to run it: its time embedding takes five numbers."""
    folder = peers.make("refiner", tmp_path / "refiner")
    write_model(read_model(folder), tmp_path / "a.safetensors")
    model = read_model(tmp_path / "a.safetensors", config=folder / "unet")
    assert model.checkpoint.family == "refiner"
    assert model.aesthetics and not model.zero_negative
    write_model(read_model(folder), tmp_path / "b")
    theirs = peers.quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "b"))
    picture = Image.new("RGB", (16, 16))
    assert theirs("red", image=picture, strength=0.5, num_inference_steps=2).images


def test_without_a_folder_the_upscaler_has_its_published_settings(tmp_path):
    """Those of x4-upscaling.yaml: v-prediction and noise of its own."""
    folder = peers.make("x4", tmp_path / "x4")
    path, original = tmp_path / "a.safetensors", read_model(folder)
    write_model(original, path)
    checkpoint = read_model(path).checkpoint  # those that the file itself says
    assert checkpoint.scheduler == original.checkpoint.scheduler
    assert checkpoint.low_res_scheduler == original.checkpoint.low_res_scheduler
    state, _ = read_safetensors(path)
    del state["v_pred"]
    write_safetensors(path.with_name("b.safetensors"), state)
    checkpoint = read_model(path.with_name("b.safetensors")).checkpoint
    assert checkpoint.family == "x4"
    assert {"first_stage_model", "cond_stage_model", "model"} == {
        key.split(".")[0] for key in original_state(checkpoint)
    }
    for scheduler in (checkpoint.scheduler, checkpoint.low_res_scheduler):
        assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.0001, 0.02)
    assert checkpoint.scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_part_alone_is_a_file_that_diffusers_reads(part, tmp_path):
    folder = peers.make("sd1", tmp_path / "sd1")
    path = tmp_path / "part.safetensors"
    write_model(read_model(folder / part), path)
    expected = getattr(peers.load("sd1", folder), part).state_dict()
    if part == "text_encoder":  # transformers' own names
        from safetensors.torch import load_file

        found = load_file(path)
        assert all(key.startswith("text_model.") for key in found)
        found = {key.removeprefix("text_model."): value for key, value in found.items()}
    else:
        kind = {"vae": diffusers.AutoencoderKL, "unet": diffusers.UNet2DConditionModel}[part]
        options = {"config": str(folder), "subfolder": part, "local_files_only": True}
        found = kind.from_single_file(path, **options).state_dict()
    assert found.keys() == {key.removeprefix("text_model.") for key in expected}
    for key, value in expected.items():
        assert (found[key.removeprefix("text_model.")] == value).all(), key
    again = read_model(path).checkpoint.parts
    assert set(again) == {part}
