"""Single files of parts, against PyTorch diffusers; what tells a file's kind; its metadata."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdjax
from sdjax.pipeline.files import read_model, write_model
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.names import state_from_params
from sdjax.weights.single_file import modelspec, read_file, read_single_file
from sdjax.weights.tensors import read_safetensors
from tests.weights.small import UNET_SD1, random_pipeline

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
    parts = dict(read_single_file(single).parts)
    config = {**parts["unet"].config, "layers_per_block": [1, 2]}
    parts["unet"] = type(parts["unet"])(config, parts["unet"].state)
    with pytest.raises(sdjax.SdjaxError, match="same layers_per_block at every level"):
        sdjax.weights.single_file.write_single_file(tmp_path / "a.safetensors", Checkpoint(parts))
