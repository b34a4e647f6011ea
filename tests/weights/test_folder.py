"""Diffusers folders written here are read there, and the other way round."""

import json
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

import sdjax
from sdjax.weights.folder import (
    read_configs,
    read_folder,
    read_json,
    read_model_index,
    read_part,
    read_weights,
    weight_files,
    write_json,
)
from sdjax.weights.names import params_from_state, state_from_params
from sdjax.weights.tensors import lazy, read_safetensors, write_safetensors
from tests.weights.small import TEXT_SD1, UNET_SD1, VAE_SD1, random_pipeline

KINDS = ("unet", "vae", "text_encoder")


def peer(kind):
    torch.manual_seed(0)
    if kind == "unet":
        return diffusers.UNet2DConditionModel(**UNET_SD1)
    if kind == "vae":
        return diffusers.AutoencoderKL(**VAE_SD1)
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT_SD1))


def ours(kind, folder, **options):
    part = {"unet": sdjax.UNet, "vae": sdjax.VAE, "text_encoder": sdjax.TextEncoder}[kind]
    return part.from_pretrained(folder, **options)


def arrays(state):
    return {key: tensor.load() for key, tensor in state.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_bit_exact(kind, tmp_path):
    theirs = peer(kind)
    theirs.save_pretrained(tmp_path / "there")
    network, params = ours(kind, tmp_path / "there")
    expected = {key: value.numpy() for key, value in theirs.state_dict().items()}
    assert_same(arrays(state_from_params(params)), expected)
    network.save_pretrained(params, tmp_path / "here")
    again, info = type(theirs).from_pretrained(tmp_path / "here", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same({k: v.numpy() for k, v in again.state_dict().items()}, expected)
    ignored = {"_diffusers_version", "_name_or_path", "transformers_version", "dtype"}
    for name, value in again.config.to_dict().items() if kind == "text_encoder" else ():
        assert name in ignored or value == getattr(theirs.config, name), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_variant(dtype, tmp_path):
    theirs = peer("unet")
    theirs.save_pretrained(tmp_path)
    network, params = ours("unet", tmp_path)
    network.save_pretrained(params, tmp_path / "half", dtype, variant="fp16")
    loaded = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "half", variant="fp16", torch_dtype=getattr(torch, dtype)
    )
    expected = theirs.to(getattr(torch, dtype)).state_dict()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, expected[key])
    _, half = ours("unet", tmp_path / "half", dtype=dtype, variant="fp16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {dtype}
    assert_same(
        arrays(state_from_params(half)), arrays(read_weights(tmp_path / "half", "fp16"))
    )


def test_pickled_weights(tmp_path):
    theirs = peer("vae")
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    _, params = ours("vae", tmp_path)
    expected = {key: value.numpy() for key, value in theirs.state_dict().items()}
    assert_same(arrays(state_from_params(params)), expected)


def test_names_of_older_versions(tmp_path):
    """The autoencoder's attention once had names of its own, and text encoders a buffer."""
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for kind in ("vae", "text_encoder"):
        theirs, folder = peer(kind), tmp_path / kind
        theirs.save_pretrained(folder)
        expected = arrays(state_from_params(ours(kind, folder)[1]))
        path = next(folder.glob("*.safetensors"))
        state, old = read_safetensors(path)[0], {}
        for key, tensor in state.items():
            for new, name in renamed.items():
                key = key.replace(f"attentions.0.{new}", f"attentions.0.{name}")
            old[key] = lazy(tensor.load().copy())
        if kind == "text_encoder":
            old["text_model.embeddings.position_ids"] = lazy(np.arange(16)[None])
        assert old.keys() != state.keys()
        write_safetensors(path, old)
        assert_same(arrays(state_from_params(ours(kind, folder)[1])), expected)
        assert read_part(folder, kind).state.keys() == expected.keys()


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_shards(safe, tmp_path):
    theirs = peer("unet")
    theirs.save_pretrained(tmp_path, max_shard_size="200KB", safe_serialization=safe)
    assert len(list(tmp_path.glob("*.safetensors" if safe else "*.bin"))) > 1
    _, params = ours("unet", tmp_path)
    expected = {key: value.numpy() for key, value in theirs.state_dict().items()}
    assert_same(arrays(state_from_params(params)), expected)
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(sdjax.SdjaxError, match="names the shard .*00002"):
        ours("unet", tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline of three parts with plain weights."""
    folder = tmp_path_factory.mktemp("whole")
    random_pipeline().save_pretrained(folder)
    return folder


def renamed(source, folder, names):
    """A copy of a folder in which files have other names."""
    shutil.copytree(source, folder)
    for old, new in names.items():
        (folder / old).rename(folder / new)
    return folder


def test_parts_without_the_variant_are_read_plain_and_named(whole, tmp_path):
    plain = "unet/diffusion_pytorch_model.safetensors"
    half = plain.replace(".safetensors", ".fp16.safetensors")
    folder = renamed(whole, tmp_path / "mixed", {plain: half})
    with pytest.warns(UserWarning, match="fp16 variant of unet only; read without it: vae, text_e"):
        found = read_folder(folder, "fp16")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, variant="fp16")
    assert_same(
        {key: tensor.load() for key, tensor in found.parts["vae"].state.items()},
        {key: value.numpy() for key, value in theirs.vae.state_dict().items()},
    )
    with pytest.raises(sdjax.SdjaxError, match="no part of .* bf16 variant .* fp16, plain"):
        read_folder(folder, "bf16")
    # A part of which there is neither the variant nor a plain file.
    odd = plain.replace("unet", "vae")
    (folder / odd).rename(folder / odd.replace(".safetensors", ".bf16.safetensors"))
    with pytest.raises(sdjax.SdjaxError, match="no fp16 variant of the weights in .*vae"):
        read_folder(folder, "fp16")


@pytest.mark.parametrize("index", ["safetensors.index.fp16", "safetensors.fp16.index"])
def test_shards_of_a_variant(index, tmp_path):
    theirs = peer("unet")
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    theirs.save_pretrained(tmp_path / "half", max_shard_size="200KB", variant="fp16")
    shutil.copytree(tmp_path / "half", tmp_path, dirs_exist_ok=True)
    stem = tmp_path / "diffusion_pytorch_model"
    Path(f"{stem}.safetensors.index.fp16.json").rename(f"{stem}.{index}.json")
    assert weight_files(tmp_path).keys() == {"", "fp16"}
    assert weight_files(tmp_path)["fp16"].name.endswith(f"{index}.json")
    state = read_weights(tmp_path, "fp16")
    assert_same(arrays(state), {key: value.numpy() for key, value in theirs.state_dict().items()})


def test_classes_of_the_model_index_win(whole, tmp_path):
    """As in diffusers; a configuration of its own may name another class, or none."""
    folder = renamed(whole, tmp_path / "model", {})
    index = read_model_index(folder)
    path = folder / "scheduler/scheduler_config.json"
    settings = read_json(path)
    write_json(folder / "model_index.json",
               index | {"scheduler": ["diffusers", "EulerDiscreteScheduler"]})  # fmt: skip
    text = read_json(folder / "text_encoder/config.json")
    del text["architectures"]
    write_json(folder / "text_encoder/config.json", text)
    for own in (settings, {k: v for k, v in settings.items() if k != "_class_name"}):
        write_json(path, own)
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        model = sdjax.StableDiffusion.from_pretrained(folder)
        assert model.scheduler_config["_class_name"] == type(theirs.scheduler).__name__
        assert read_configs(folder)["scheduler"]["_class_name"] == "EulerDiscreteScheduler"
        assert read_part(folder, "text_encoder").config["architectures"] == ["CLIPTextModel"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("scheduler", "DreamScheduler", "unsupported _class_name 'DreamScheduler'"),
        ("vae", "AsymmetricAutoencoderKL", "vae must be one of AutoencoderKL, AutoencoderTiny, AutoencoderKLTemp"),
        ("text_encoder", "T5EncoderModel", "text_encoder must be one of CLIPTextModel, .*, got T5"),
        ("scheduler", None, "no _class_name"),
    ],
)
def test_unknown_classes_are_refused_when_loading(name, kind, message, whole, tmp_path):
    folder = renamed(whole, tmp_path / "model", {})
    index = read_model_index(folder)
    if kind is None:
        path = folder / "scheduler/scheduler_config.json"
        write_json(path, {k: v for k, v in read_json(path).items() if k != "_class_name"})
        del index[name]
    write_json(folder / "model_index.json", index | ({name: ["diffusers", kind]} if kind else {}))
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        sdjax.StableDiffusion.from_pretrained(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_pipeline_folder_finds_the_part(tmp_path):
    peer("vae").save_pretrained(tmp_path / "vae")
    vae, _ = sdjax.VAE.from_pretrained(tmp_path)
    assert vae.config.latent_channels == 4


def test_a_network_is_traced_once(tmp_path, monkeypatch):
    peer("unet").save_pretrained(tmp_path)
    ours("unet", tmp_path)
    traced = []
    original = jax.eval_shape
    monkeypatch.setattr(jax, "eval_shape", lambda *a: traced.append(a) or original(*a))
    ours("unet", tmp_path, dtype="bfloat16")
    assert traced == []


def test_wrong_weights_are_named(tmp_path):
    peer("unet").save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state, _ = read_safetensors(weights)
    state = {key: lazy(tensor.load()) for key, tensor in state.items()}
    first = state["conv_in.weight"]
    write_safetensors(weights, {k: v for k, v in state.items() if k != "conv_in.weight"})
    with pytest.raises(sdjax.SdjaxError, match="1 missing .conv_in.weight"):
        ours("unet", tmp_path)
    write_safetensors(weights, {**state, "extra.weight": first})
    with pytest.raises(sdjax.SdjaxError, match="1 unexpected .extra.weight"):
        ours("unet", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 48}))
    with pytest.raises(sdjax.SdjaxError, match="misshapen"):
        ours("unet", tmp_path)
    damaged = first.map(first.shape, lambda array: array * np.nan)
    with pytest.raises(sdjax.SdjaxError, match="conv_in.weight holds values that are not finite"):
        params_from_state({"conv_in.weight": damaged})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("unet", {"norm_num_groups": 0}, "no network can be made of the configuration"),
        ("unet", {"block_out_channels": 16}, "config.json: block_out_channels cannot be 16"),
        ("unet", {"norm_eps": {"a": 1}}, "no network can be made"),
        ("unet", {"layers_per_block": 10**9}, "layers_per_block is 1000000000, but there are only"),
        ("vae", {"layers_per_block": 10**9}, "but there are only"),
        ("vae", {"norm_num_groups": 0}, "no network can be made"),
        ("text_encoder", {"num_attention_heads": 0}, "no network can be made"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "but there are only"),
        ("text_encoder", {"architectures": "CLIPTextModel"}, "architectures cannot be 'CLIP"),
    ],
)
def test_values_that_make_no_network_are_one_line(kind, change, message, tmp_path):
    peer(kind).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        ours(kind, tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(sdjax.SdjaxError, match="no config.json"):
        ours("unet", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(UNET_SD1))
    with pytest.raises(sdjax.SdjaxError, match=r"no weights .* found config.json"):
        ours("unet", tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_text("a text file, renamed")
    with pytest.raises(sdjax.SdjaxError, match="not a safetensors file"):
        ours("unet", tmp_path)
    with pytest.raises(sdjax.SdjaxError, match="no fp16 variant"):
        ours("unet", tmp_path, variant="fp16")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(sdjax.SdjaxError, match="is not JSON"):
        ours("unet", tmp_path)
