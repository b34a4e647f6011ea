"""Each published kind of model: the picture of diffusers, and files that both sides read."""

import warnings

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

import main
import sdjax
from sdjax.pipeline.model.files import read_model, write_model
from sdjax.weights.names import state_from_params
from sdjax.weights.tensors import lazy, read_safetensors, write_safetensors
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close, torch_latents

NOISE = np.random.RandomState(0).randn(2, 8, 8, 4).astype(np.float32)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return peers.make(kind, tmp_path_factory.mktemp(kind))


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


def test_projection_that_the_encoder_does_not_have_is_left_out(kind, folder, model, tmp_path):
    """ComfyUI writes CLIP's with every file, and other programs other things of CLIP."""
    state, metadata = read_safetensors(_single(model, tmp_path))
    width = model.text_encoders[0].config.hidden_size
    # SD2's is in open_clip's layout, and then comes with the last layer, which is not used.
    start = "conditioner.embedders.0." if kind == "sdxl" else "cond_stage_model."
    eye, one = lazy(np.eye(width, dtype=np.float32)), lazy(np.float32(1))
    extra = {f"{start}logit_scale": one, f"{start}text_projection": eye}
    if kind == "sd2":
        extra |= {
            key.replace("resblocks.0.", "resblocks.1."): tensor
            for key, tensor in state.items()
            if "resblocks.0." in key
        }
        extra["cond_stage_model.model.text_projection"] = eye
        extra["cond_stage_model.model.logit_scale"] = one
    else:
        extra[f"{start}transformer.text_projection.weight"] = eye
        extra[f"{start}transformer.text_model.embeddings.position_ids"] = lazy(np.arange(16)[None])
    path = tmp_path / "comfy.safetensors"
    write_safetensors(path, state | extra, metadata=metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inferred = read_model(path).checkpoint.parts["text_encoder"]
    assert inferred.config["architectures"] == ["CLIPTextModel"]
    assert inferred.state.keys() == state_from_params(model.params["text_encoder"]).keys()
    same_params(sdjax.StableDiffusion.from_single_file(path, config=folder).params, model.params)
    assert main.main(["convert", str(path), str(tmp_path / "out"), "--config", str(folder)]) == 0
    theirs = peers.load(kind, tmp_path / "out")
    assert type(theirs.text_encoder) is transformers.CLIPTextModel
    assert_same_weights(theirs, peers.load(kind, folder))


EDM = {
    "playground": (
        diffusers.EDMDPMSolverMultistepScheduler(),
        {"edm_mean": [-1.6574, 1.886, -1.383, 2.5155], "edm_std": [8.4927, 5.9022, 6.5498, 5.2299]},
    ),
    "cosxl": (
        diffusers.EDMEulerScheduler(
            sigma_max=120.0, sigma_data=1.0, sigma_schedule="exponential",
            prediction_type="v_prediction",
        ),
        {"edm_vpred.sigma_max": 120.0, "edm_vpred.sigma_min": 0.002},
    ),
}  # fmt: skip


@pytest.mark.parametrize("edm", EDM)
def test_edm_markers_give_the_picture_of_diffusers(edm, tmp_path):
    """Of a file that says it with nothing but its markers, and of the folder made of it."""
    scheduler, markers = EDM[edm]
    folder = peers.make("sdxl", tmp_path / "plain")
    pipeline = peers.load("sdxl", folder)
    pipeline.scheduler = scheduler
    if edm == "playground":
        mean, std = markers.values()
        pipeline.vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    theirs = peers.images(pipeline, PROMPTS, latents=torch_latents(NOISE), num_inference_steps=8)
    path = tmp_path / "plain.safetensors"
    write_model(read_model(folder), path)
    state, _ = read_safetensors(path)
    write_safetensors(
        tmp_path / "a.safetensors", state | {k: lazy(np.float32(v)) for k, v in markers.items()}
    )
    with pytest.warns(UserWarning, match="edm_"):  # against the scheduler of the folder
        model = sdjax.StableDiffusion.from_single_file(tmp_path / "a.safetensors", config=folder)
    options = {"steps": 8, "guidance_scale": 5.0, "latents": NOISE, "output": "numpy"}
    ours = model.generate(PROMPTS, **options)
    assert_close(ours, theirs)
    model.save_pretrained(tmp_path / "again")
    again = peers.load("sdxl", tmp_path / "again")
    assert type(again.scheduler) is type(scheduler)
    theirs = peers.images(again, PROMPTS, latents=torch_latents(NOISE), num_inference_steps=8)
    assert_close(ours, theirs)


def test_sdxl_without_one_of_its_encoders_is_refused(tmp_path):
    folder = peers.make("sdxl", tmp_path / "sdxl")
    path = tmp_path / "a.safetensors"
    write_model(read_model(folder), path)
    state, _ = read_safetensors(path)
    for number, part in enumerate(("text_encoder_2", "text_encoder")):
        kept = {k: t for k, t in state.items() if not k.startswith(f"conditioner.embedders.{number}")}
        write_safetensors(tmp_path / "one.safetensors", kept)
        with pytest.raises(sdjax.SdjaxError, match=f"holds unet, vae, {part}: expected .* both"):
            sdjax.StableDiffusion.from_single_file(tmp_path / "one.safetensors", config=folder)


def _single(model, folder):
    model.save_single_file(folder / "model.safetensors")
    return folder / "model.safetensors"
