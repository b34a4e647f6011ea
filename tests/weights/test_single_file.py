"""Single files of parts, against PyTorch diffusers; what tells a file's kind; its metadata."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import sdjax
from sdjax.pipeline.model.files import pipeline_class, read_model, write_model
from sdjax.weights import layout, parts, single_file
from sdjax.weights.checkpoint import Checkpoint, Part
from sdjax.weights.modelspec import modelspec
from sdjax.weights.names import state_from_params
from sdjax.weights.openclip import to_open_clip
from sdjax.weights.single_file import read_file, read_single_file
from sdjax.weights.tensors import lazy, read_safetensors, write_safetensors
from tests.weights.small import TEXT_SD1, UNET_SD1, random_pipeline

BIG_TEXT = {**TEXT_SD1, "hidden_size": 32, "projection_dim": 32, "hidden_act": "gelu"}
PROJECTED = {"architectures": ["CLIPTextModelWithProjection"]}

CONTROL = {key: v for key, v in UNET_SD1.items() if key not in
           ("sample_size", "out_channels", "up_block_types")}  # fmt: skip


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    random_pipeline().save_single_file(path)
    return path


def test_controlnet_both_ways(tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.ControlNetModel(**CONTROL, conditioning_embedding_out_channels=(8, 16))
    expected = {}
    for key, value in theirs.state_dict().items():  # its last layers start as zeros
        value.copy_(torch.randn_like(value))
        expected[key] = value.numpy()
    theirs.save_pretrained(tmp_path / "there")
    path = tmp_path / "control.safetensors"
    write_model(read_model(tmp_path / "there"), path)
    assert all(key.startswith("control_model.") for key in read_safetensors(path)[0])
    again = diffusers.ControlNetModel.from_single_file(
        path, config=str(tmp_path / "there"), local_files_only=True
    ).state_dict()
    assert again.keys() == expected.keys()
    _, params = sdjax.ControlNet.from_pretrained(path, config=tmp_path / "there")
    found = state_from_params(params)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(again[key].numpy(), value, err_msg=key)
        np.testing.assert_array_equal(found[key].load(), value, err_msg=key)


def test_config_of_a_part_is_used_and_that_of_a_folder_refused(tmp_path):
    model = random_pipeline()
    model.vae.save_pretrained(model.params["vae"], tmp_path / "vae")
    path = tmp_path / "vae.safetensors"
    write_model(read_model(tmp_path / "vae"), path)
    vae, _ = sdjax.VAE.from_pretrained(path, config=tmp_path / "vae")
    assert vae.config == model.vae.config
    found = read_model(path, config=tmp_path / "vae").checkpoint.parts["vae"].config
    assert found["norm_num_groups"] == 8
    for read in (sdjax.VAE.from_pretrained, read_model):
        with pytest.raises(sdjax.SdjaxError, match="for single files"):
            read(tmp_path / "vae", config=tmp_path / "vae")


def test_content_tells_the_format_and_not_the_name(single, tmp_path):
    expected = read_safetensors(single)[0]
    wrong = tmp_path / "model.ckpt"
    wrong.write_bytes(single.read_bytes())
    assert read_file(wrong)[0].keys() == expected.keys()
    tensors = {key: torch.from_numpy(t.load().copy()) for key, t in expected.items()}
    for zipped in (True, False):
        pickled = tmp_path / "pickled.safetensors"
        torch.save(tensors, pickled, _use_new_zipfile_serialization=zipped)
        assert read_file(pickled)[0].keys() == expected.keys()


def test_published_pair_of_files_of_taesd(tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny().state_dict()
    halves = {"encoder": {}, "decoder": {}}
    for key, value in theirs.items():
        half, _, number, rest = key.split(".", 3)
        # The published decoder clips the latents in a layer of its own, the first.
        halves[half][f"{int(number) + (half == 'decoder')}.{rest}"] = value
    torch.save(halves["encoder"], tmp_path / "taesd_encoder.pth")
    with pytest.raises(sdjax.SdjaxError, match="encoder alone: the decoder must lie beside it"):
        sdjax.TinyVAE.from_pretrained(tmp_path / "taesd_encoder.pth")
    torch.save(halves["decoder"], tmp_path / "taesd_decoder.pth")
    for half in halves:
        _, params = sdjax.TinyVAE.from_pretrained(tmp_path / f"taesd_{half}.pth")
        found = state_from_params(params)
        assert found.keys() == theirs.keys()
        for key, value in theirs.items():
            np.testing.assert_array_equal(found[key].load(), value.numpy(), err_msg=key)


def test_metadata_of_the_source_stay(single, tmp_path):
    written = read_safetensors(single)[1]
    assert written["modelspec.title"] == "model"
    assert len(written["modelspec.date"]) == len("2026-01-31")
    theirs = {
        "modelspec.title": "Foxes", "modelspec.author": "A. Fox", "modelspec.license": "CC0-1.0",
        "modelspec.date": "2020-01-01", "modelspec.architecture": "wrong",
        "modelspec.hash_sha256": "0x0", "ss_steps": "3",
    }  # fmt: skip
    state = {key: torch.from_numpy(t.load().copy()) for key, t in read_file(single)[0].items()}
    save_file(state, tmp_path / "source.safetensors", theirs)
    found = modelspec(read_single_file(tmp_path / "source.safetensors"), "another")
    kept = ("title", "author", "license", "date")
    assert all(found[f"modelspec.{name}"] == theirs[f"modelspec.{name}"] for name in kept)
    assert found["modelspec.architecture"] == "stable-diffusion-v1"
    assert not {"modelspec.hash_sha256", "ss_steps"} & set(found)


def test_levels_of_different_depth_have_no_single_file(single, tmp_path):
    whole = dict(read_single_file(single).parts)
    config = {**whole["unet"].config, "layers_per_block": [1, 2]}
    whole["unet"] = Part(config, whole["unet"].state)
    with pytest.raises(sdjax.SdjaxError, match="same layers_per_block at every level"):
        single_file.write_single_file(tmp_path / "a.safetensors", Checkpoint(whole))


def test_second_text_encoder_alone_is_told_from_the_first(tmp_path):
    """By its place, by ModelSpec, by the published width, or by the configurations given."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**BIG_TEXT)
    theirs = transformers.CLIPTextModelWithProjection(config).state_dict()
    state = {key: lazy(value.numpy()) for key, value in theirs.items()}
    second = {f"conditioner.embedders.1.model.{k}": t for k, t in to_open_clip(state).items()}
    path, plain = tmp_path / "second.safetensors", tmp_path / "plain.safetensors"
    write_safetensors(path, second)
    write_safetensors(plain, state)
    found = read_single_file(path)
    assert set(found.parts) == {"text_encoder_2"} and found.family == "sdxl"
    assert set(read_single_file(plain).parts) == {"text_encoder"}
    given = {"text_encoder": TEXT_SD1, "text_encoder_2": {**BIG_TEXT, **PROJECTED}}
    assert set(read_single_file(plain, given).parts) == {"text_encoder_2"}
    write_model(read_model(path), tmp_path / "again.safetensors")  # without prefix, as published
    assert read_safetensors(tmp_path / "again.safetensors")[0].keys() == state.keys()
    assert set(read_single_file(tmp_path / "again.safetensors").parts) == {"text_encoder_2"}
    wide = {
        "embeddings.token_embedding.weight": lazy(np.zeros((3, 1280), np.float32)),
        "text_projection.weight": lazy(np.zeros((1280, 1280), np.float32)),
    }
    assert layout.second_alone({"text_encoder": wide}, {}, {})
    # Where none is asked for by name, the one that is there will do.
    assert parts.read(path, "text_encoder", None, None, alone=True).state.keys() == state.keys()
    with pytest.raises(sdjax.SdjaxError, match="holds text_encoder_2, but no text_encoder"):
        sdjax.TextEncoder.from_pretrained(path, part="text_encoder")


def test_tensors_of_no_network_are_told_unless_they_are_known(single, tmp_path):
    state, metadata = read_safetensors(single)
    one = lazy(np.zeros(1, np.float32))
    known = (
        "betas", "alphas_cumprod_prev", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1",
        "model_ema.num_updates", "model_ema.diffusion_modelout0bias", "logvar",
        "cond_stage_model.logit_scale", "cond_stage_model.text_projection",
    )  # fmt: skip
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state | dict.fromkeys(known, one), metadata=metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_single_file(path)
    write_safetensors(path, state | dict.fromkeys(("flow_pred", "some.more"), one))
    with pytest.warns(UserWarning, match="2 tensors of the file are not .*: flow_pred, some.more"):
        read_single_file(path)
    for key, kind in (
        ("cc_projection.weight", "Zero123"),
        ("noise_augmentor.time_embed.weight", "unCLIP"),
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
    ):
        write_safetensors(path, {**state, key: one})
        with pytest.raises(sdjax.SdjaxError, match=f"{kind}.*not supported"):
            read_single_file(path)


@pytest.mark.parametrize(
    ("family", "taken", "latents", "pipeline", "architecture"),
    [
        ("sd1", 4, 4, "StableDiffusionPipeline", "stable-diffusion-v1"),
        ("sd1", 8, 8, "StableDiffusionPipeline", "stable-diffusion-v1"),
        ("sd1", 9, 9, "StableDiffusionPipeline", "stable-diffusion-v1"),
        ("sd1", 8, 4, "StableDiffusionInstructPix2PixPipeline", "stable-diffusion-v1-edit"),
        ("sd1", 16, 8, "StableDiffusionInstructPix2PixPipeline", "stable-diffusion-v1-edit"),
        ("sd1", 9, 4, "StableDiffusionInpaintPipeline", "stable-diffusion-v1-inpainting"),
        ("sd1", 17, 8, "StableDiffusionInpaintPipeline", "stable-diffusion-v1-inpainting"),
        ("sd2", 5, 4, "StableDiffusionDepth2ImgPipeline", "stable-diffusion-v2-depth"),
        ("sd2", 5, 5, "StableDiffusionPipeline", "stable-diffusion-v2-512"),
        ("sdxl", 8, 8, "StableDiffusionXLPipeline", "stable-diffusion-xl-v1-base"),
        ("sdxl", 8, 4, "StableDiffusionXLInstructPix2PixPipeline", "stable-diffusion-xl-v1-base-edit"),
        ("sd1", 11, 4, None, "stable-diffusion-v1"),
        ("sdxl", 5, 4, None, "stable-diffusion-xl-v1-base-depth"),
    ],
)
def test_input_channels_are_counted_from_the_latents(
    family, taken, latents, pipeline, architecture
):
    unet, vae = Part({"in_channels": taken}, {}), Part({"latent_channels": latents}, {})
    checkpoint = Checkpoint({"unet": unet, "vae": vae}, family, {"_class_name": "DDIMScheduler"})
    assert modelspec(checkpoint, "a")["modelspec.architecture"] == architecture
    if pipeline is None:
        with pytest.raises(sdjax.SdjaxError, match=f"takes {taken} channels"):
            pipeline_class(checkpoint)
    else:
        assert pipeline_class(checkpoint) == pipeline
