"""Each published kind of model: the picture of diffusers, and files that both sides read."""

import jax
import numpy as np
import pytest
import torch

import main
import sdjax
from sdjax.pipeline.files import read_model
from sdjax.weights.tensors import read_safetensors
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close, torch_latents

NOISE = np.random.RandomState(0).randn(2, 8, 8, 4).astype(np.float32)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return peers.make(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def model(folder):
    return sdjax.StableDiffusion.from_pretrained(folder)


def same_params(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def state_dicts(pipeline):
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {
        f"{part}.{key}": value
        for part in parts
        if getattr(pipeline, part, None) is not None
        for key, value in getattr(pipeline, part).state_dict().items()
    }


def assert_same_weights(one, other):
    one, other = state_dicts(one), state_dicts(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_guided_images_equal_diffusers(kind, model, tmp_path):
    """Of a model that diffusers wrote, read here, and written here, read there."""
    model.save_pretrained(tmp_path)
    pipeline = peers.load(kind, tmp_path)
    pictures = []
    # SDXL without a negative prompt has an embedding of zeros, not that of no words.
    for negative in [None, ["", "red"]] if kind == "sdxl" else [["", "red"]]:
        options = {} if negative is None else {"negative_prompt": negative}
        theirs = peers.images(pipeline, PROMPTS, latents=torch_latents(NOISE), **options)
        ours = model.generate(
            PROMPTS, negative, steps=20, guidance_scale=5.0, latents=NOISE, output="numpy"
        )
        assert_close(ours, theirs)
        pictures.append(ours)
    assert len(pictures) == 1 or np.abs(pictures[0] - pictures[1]).max() > 1e-3


def test_distilled_network_takes_guidance_as_an_input(tmp_path):
    folder = peers.make("distilled", tmp_path)
    theirs = peers.images(
        peers.load("distilled", folder), PROMPTS, latents=torch_latents(NOISE), guidance_scale=3.0
    )
    model = sdjax.StableDiffusion.from_pretrained(folder)
    options = {"steps": 20, "latents": NOISE, "output": "numpy"}
    assert_close(model.generate(PROMPTS, guidance_scale=3.0, **options), theirs)


def test_loaded_upscaler_keeps_both_schedulers(tmp_path):
    """It makes no images from a prompt alone, but is read and saved like the others."""
    folder = peers.make("x4", tmp_path / "x4")
    sdjax.StableDiffusion.from_pretrained(folder).save_pretrained(tmp_path / "again")
    expected, found = (read_model(path).checkpoint for path in (folder, tmp_path / "again"))
    assert found.low_res_scheduler == expected.low_res_scheduler != {}
    assert found.scheduler == expected.scheduler


def test_folder_written_here_is_read_there(kind, folder, model, tmp_path):
    model.save_pretrained(tmp_path)
    assert_same_weights(peers.load(kind, tmp_path), peers.load(kind, folder))
    same_params(sdjax.StableDiffusion.from_pretrained(tmp_path).params, model.params)


def test_single_file_written_here_is_read_there(kind, folder, model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save_single_file(path)
    again = sdjax.StableDiffusion.from_single_file(path, config=folder)
    same_params(again.params, model.params)
    theirs = peers.CLASSES[kind].from_single_file(path, config=str(folder), local_files_only=True)
    assert_same_weights(theirs, peers.load(kind, folder))
    metadata = read_safetensors(path)[1]
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.prediction_type"] == ("v" if kind == "sd2" else "epsilon")


def test_convert_in_every_direction(kind, folder, model, tmp_path):
    single, back, half = (tmp_path / name for name in ("a.safetensors", "b", "c.safetensors"))
    assert main.main(["convert", str(folder), str(single)]) == 0
    assert main.main(["convert", str(single), str(back), "--config", str(folder)]) == 0
    assert_same_weights(peers.load(kind, back), peers.load(kind, folder))
    assert main.main(["convert", str(back), str(half), "--dtype", "float16"]) == 0
    state, _ = read_safetensors(half)
    assert {tensor.dtype.name for tensor in state.values()} == {"float16"}
    assert half.stat().st_size < 0.6 * single.stat().st_size


def test_pickled_checkpoint(kind, folder, model, tmp_path):
    state, _ = read_safetensors(_single(model, tmp_path))
    tensors = {key: torch.from_numpy(tensor.load().copy()) for key, tensor in state.items()}
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7}, path)
    again = sdjax.StableDiffusion.from_single_file(path, config=folder)
    same_params(again.params, model.params)


def _single(model, folder):
    model.save_single_file(folder / "model.safetensors")
    return folder / "model.safetensors"
