"""Every published model of the manifest: keys and shapes, in each layout, both ways."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.weights import infer, layout, modelspec, openclip, original, parts, single_file
from sdjax.weights.names import check_shapes, lazy_params, state_from_params
from sdjax.weights.tensors import LazyTensor

HERE = Path(__file__).parent
SHAPES = HERE.parent / "models" / "state_dict_manifest.json.gz"
MODELS = json.loads(gzip.decompress(SHAPES.read_bytes()))
# Of the U-Nets and the autoencoder: diffusers' key to that of the original files.
ORIGINAL = json.loads(gzip.decompress((HERE / "original_keys.json.gz").read_bytes()))
UNETS = [name for name in MODELS if name.endswith("_unet")]
VAES = ["sd_vae", "sd_x4_vae"]
TEXTS = [name for name in MODELS if "_text" in name]


def state_of(name):
    """The model's state; all numbers of a tensor are its place, at no cost of memory."""
    return {
        key: LazyTensor(
            tuple(shape),
            np.dtype(np.float32),
            lambda i=i, shape=shape: np.broadcast_to(np.float32(i), shape),
        )
        for i, (key, shape) in enumerate(MODELS[name].items())
    }


def places(state):
    """What each tensor of a state is filled with: which tensor of the manifest it was."""
    return {key: tensor.load().flat[0] for key, tensor in state.items()}


def shapes_of(state):
    return {key: tensor.shape for key, tensor in state.items()}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_tree_and_back(name):
    state = state_of(name)
    flat = lazy_params(state)
    tree = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat.items()}
    assert shapes_of(state_from_params(unflatten_dict(tree))) == shapes_of(state)


@pytest.mark.parametrize("name", ORIGINAL)
def test_original_names_and_back(name):
    state = state_of(name)
    if name in VAES:
        there, back = original.original_vae, original.diffusers_vae
    else:
        there = lambda s: original.original_unet(s, 2)  # noqa: E731
        back = original.diffusers_unet
    renamed = there(state)
    found, expected = places(renamed), places(state)
    assert found == {there: expected[key] for key, there in ORIGINAL[name].items()}
    assert shapes_of(back(renamed)) == shapes_of(state)
    assert places(back(renamed)) == expected


@pytest.mark.parametrize("name", [n for n in MODELS if "controlnet" in n])
def test_controlnet_names_and_back(name):
    state = state_of(name)
    renamed = original.original_unet(state, 2)
    assert not set(renamed) & set(state)
    assert {"input_hint_block.14.bias", "zero_convs.0.0.weight", "middle_block_out.0.bias"} < set(
        renamed
    )
    assert shapes_of(original.diffusers_unet(renamed)) == shapes_of(state)
    assert places(original.diffusers_unet(renamed)) == places(state)


@pytest.mark.parametrize("name", TEXTS)
def test_open_clip_layout_and_back(name):
    state = state_of(name)
    fused = openclip.to_open_clip(state)
    layers = infer.count(fused, r"transformer\.resblocks\.(\d+)\.")
    width = fused["ln_final.weight"].shape[0]
    assert fused["transformer.resblocks.0.attn.in_proj_weight"].shape == (3 * width, width)
    assert len(fused) == 12 * layers + 4 + ("text_projection" in fused)
    again, state = openclip.from_open_clip(fused), openclip.without_prefix(state)
    assert shapes_of(again) == shapes_of(state)
    cheap = [key for key in state if "_proj.weight" not in key or ".layers.0." in key]
    assert places({k: again[k] for k in cheap}) == places({k: state[k] for k in cheap})


@pytest.mark.parametrize("name", UNETS)
def test_unet_configuration_is_inferred(name):
    state = state_of(name)
    config = UNetConfig.from_dict(infer.unet_config(state))
    check_shapes(lazy_params(state), flatten_dict(parts.unet_shapes(config)))


@pytest.mark.parametrize("name", [n for n in MODELS if "controlnet" in n])
def test_controlnet_configuration_is_inferred(name):
    state = state_of(name)
    config = parts.ControlNet.config_class.from_dict(infer.controlnet_config(state))
    check_shapes(lazy_params(state), flatten_dict(parts.controlnet_shapes(config)))


def test_guidance_input_of_lcm_has_two_names():
    state = state_of("lcm_sd15_unet")
    renamed = original.original_unet(state, 2)
    assert "time_embedding.cond_proj.weight" in renamed
    other = {k.replace("time_embedding.cond", "time_embed.cond"): t for k, t in renamed.items()}
    assert other.keys() != renamed.keys()
    for published in (renamed, other):
        assert places(original.diffusers_unet(published)) == places(state)


def test_tiny_autoencoder_is_recognised():
    found = single_file.configured(single_file.split_parts(state_of("taesd")), {})["vae"]
    config = parts.TinyVAE.config_class.from_dict(found.config)
    check_shapes(lazy_params(found.state), flatten_dict(parts.tiny_vae_shapes(config)))


@pytest.mark.parametrize("name", VAES)
def test_vae_configuration_is_inferred(name):
    state = state_of(name)
    config = VAEConfig.from_dict(infer.vae_config(state))
    check_shapes(lazy_params(state), flatten_dict(parts.vae_shapes(config)))


@pytest.mark.parametrize("name", TEXTS)
def test_text_configuration_is_inferred(name):
    state = state_of(name)
    config = TextEncoderConfig.from_dict(infer.text_config(openclip.without_prefix(state)))
    check_shapes(lazy_params(state), flatten_dict(parts.text_shapes(config)))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("sd1", {"unet": "sd15_unet", "vae": "sd_vae", "text_encoder": "clip_vit_l14_text"}),
        ("sd1", {"unet": "sd15_inpaint_unet", "vae": "sd_vae",
                 "text_encoder": "clip_vit_l14_text"}),
        ("sd2", {"unet": "sd21_unet", "vae": "sd_vae",
                 "text_encoder": "openclip_h_text_23layers_sd2"}),
        ("sdxl", {"unet": "sdxl_base_unet", "vae": "sd_vae", "text_encoder": "clip_vit_l14_text",
                  "text_encoder_2": "openclip_bigG_text_sdxl"}),
        ("refiner", {"unet": "sdxl_refiner_unet", "vae": "sd_vae",
                     "text_encoder_2": "openclip_bigG_text_sdxl"}),
    ],
)
def test_whole_single_file_and_back(family, names):
    """The parts of a model come out of its single file, with the names the manifest gives."""
    states = {part: state_of(name) for part, name in names.items()}
    bare = {part: openclip.without_prefix(state) for part, state in states.items()}
    checkpoint = single_file.Checkpoint(single_file.configured(bare, {}))
    assert single_file.family_of(checkpoint.parts) == family
    whole = single_file.original_state(single_file.Checkpoint(checkpoint.parts, family))
    found = single_file.configured(single_file.split_parts(whole), {})
    assert {part: shapes_of(value.state) for part, value in found.items()} == {
        part: shapes_of(state) for part, state in states.items()
    }
    assert {part: value.config for part, value in found.items()} == {
        part: value.config for part, value in checkpoint.parts.items()
    }


def read(monkeypatch, state, metadata=None, **options):
    """What `read_single_file` makes of a file of that content."""
    monkeypatch.setattr(single_file, "read_file", lambda path: (state, metadata or {}))
    return single_file.read_single_file("a.ckpt", **options)


def test_published_layout_of_sd2(monkeypatch):
    """Its text encoder has 24 layers and a projection; v is predicted where nothing says ε."""
    states = {"unet": state_of("sd21_unet"), "vae": state_of("sd_vae")}
    text = openclip.without_prefix(state_of("openclip_h_text_23layers_sd2"))
    last = {key.replace(".22.", ".23."): t for key, t in text.items() if ".layers.22." in key}
    checkpoint = single_file.Checkpoint(
        single_file.configured({**states, "text_encoder": {**text, **last}}, {}), "sd2"
    )
    whole = single_file.original_state(checkpoint)
    square = LazyTensor((1024, 1024), np.dtype(np.float32), None)
    whole[f"{layout.OPEN_CLIP}text_projection"] = square
    for metadata, options, prediction in (
        ({}, {}, "v_prediction"),
        ({"global_step": "875000"}, {}, "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ({}, {"prediction_type": "epsilon"}, "epsilon"),
    ):
        found = read(monkeypatch, whole, metadata, **options)
        assert found.family == "sd2"
        assert shapes_of(found.parts["text_encoder"].state) == shapes_of(text)
        assert found.scheduler["prediction_type"] == prediction
        pixels = 768 if prediction == "v_prediction" else 512
        assert found.parts["unet"].config["sample_size"] == pixels // 8
        assert modelspec.modelspec(found, "a")["modelspec.resolution"] == f"{pixels}x{pixels}"
    configs = {"scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}}
    assert read(monkeypatch, whole, configs=configs).scheduler == configs["scheduler"]
    found = read(monkeypatch, whole, configs=configs, prediction_type="epsilon")
    assert found.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize("family", ["sd1", "sdxl", "refiner", "x4"])
def test_autoencoder_alone_has_the_scale_its_metadata_tell(family, monkeypatch):
    states = {"vae": state_of("sd_x4_vae" if family == "x4" else "sd_vae")}
    vae = single_file.configured(states, {}, family)
    metadata = modelspec.modelspec(single_file.Checkpoint(vae, family), "a")
    assert metadata["modelspec.architecture"].endswith("/vae")
    state = single_file.original_state(single_file.Checkpoint(vae, family))
    found = read(monkeypatch, state, metadata).parts["vae"].config
    assert found["scaling_factor"] == infer.SCALING[family]


def test_single_file_keys_are_the_published_ones():
    states = {"unet": state_of("sdxl_base_unet"), "vae": state_of("sd_vae"),
              "text_encoder": state_of("clip_vit_l14_text"),
              "text_encoder_2": openclip.without_prefix(state_of("openclip_bigG_text_sdxl"))}
    found = single_file.configured(states, {})
    keys = single_file.original_state(single_file.Checkpoint(found, "sdxl"))
    assert {
        "model.diffusion_model.label_emb.0.0.weight",
        "first_stage_model.decoder.up.3.block.0.conv1.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
    } < set(keys)
