"""Files of trained adaptations: as others read them, and back again bit by bit."""

import json

import diffusers
import jax
import numpy as np
import peft
import pytest

import sdjax
from sdjax.models import TextEncoderConfig, UNetConfig
from sdjax.training import adaptations
from sdjax.weights.adapter_names import sd_scripts_name
from sdjax.weights.adapters import read_lora
from sdjax.weights.names import state_from_params, state_key
from sdjax.weights.parts import text_shapes, unet_shapes
from sdjax.weights.published import published
from sdjax.weights.tensors import read_safetensors
from tests.pipeline import peers

VALUES = {
    "lora": adaptations.LoRA(rank=3, alpha=2.0, text_encoder=True),
    "locon": adaptations.LoRA(rank=3, alpha=2.0, conv_rank=2, conv_alpha=1.5),
    "dora": adaptations.LoRA(rank=2, targets=("transformers", "convolutions"), dora=True),
}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return peers.make(kind, tmp_path_factory.mktemp(kind) / "model")


@pytest.fixture(scope="module")
def model(folder):
    return sdjax.StableDiffusion.from_pretrained(folder)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def trained(adaptation, model):
    """A tree as after some training: every leaf is something random."""
    adaptation, networks = adaptation.fitted(adaptations.Networks.of(model))
    tree = host(adaptation.init(jax.random.key(0), host(model.params)))
    random = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), tree
    )
    return adaptation, networks, tree


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value.detach().numpy(), atol=2e-6, err_msg=key)


def state(params):
    return {key: tensor.load() for key, tensor in state_from_params(params).items()}


@pytest.mark.parametrize("name", VALUES)
def test_a_lora_is_the_same_here_in_diffusers_and_in_peft(kind, folder, model, name, tmp_path):
    adaptation, networks, tree = trained(VALUES[name], model)
    path = adaptation.export(tree, tmp_path, model, networks, about={"ss_steps": "7"})
    wanted = host(adaptation.apply(host(model.params), tree))

    own = tmp_path / "peft" / "pytorch_lora_weights.safetensors"
    for file in (path, own):
        ours = sdjax.StableDiffusion.from_pretrained(folder)
        ours.load_lora(file)
        for part in tree:
            for key, value in state(ours.params[part]).items():
                np.testing.assert_allclose(value, state(wanted[part])[key], atol=1e-6, err_msg=key)

    # Of sd-scripts' file diffusers says that it leaves a DoRA's lengths out.
    for file in (own,) if name == "dora" else (path, own):
        theirs = peers.load(kind, folder)
        theirs.load_lora_weights(str(file))
        theirs.fuse_lora(components=[part for part in tree])
        theirs.unload_lora_weights()
        for part in tree:
            assert_same_weights(state(wanted[part]), getattr(theirs, part).state_dict())

    theirs = peers.load(kind, folder)
    for part in tree:
        wrapped = peft.PeftModel.from_pretrained(
            getattr(theirs, part), str(tmp_path / "peft" / part))
        assert_same_weights(state(wanted[part]), wrapped.merge_and_unload().state_dict())


@pytest.mark.parametrize("name", VALUES)
def test_factors_come_back_bit_by_bit(model, name, tmp_path):
    adaptation, networks, tree = trained(VALUES[name], model)
    path = adaptation.export(tree, tmp_path, model, networks)
    layers = model.unet.config.layers_per_block
    again = read_lora(path, model.params, layers).factors
    count = 0
    for part, own in tree.items():
        for key, tensor in state_from_params(own).items():
            module, within, factor = key.rpartition(".lora_")
            if within:
                found = again[part, f"{module}.weight"][factor.removesuffix(".weight")]
            else:
                module = key.removesuffix(".magnitude")
                found = again[part, f"{module}.weight"]["dora_scale"]
            np.testing.assert_array_equal(found.ravel(), tensor.load().ravel())
            count += 1
    assert count == sum(set(factors) >= {"down"} for factors in again.values()) * (
        3 if adaptation.dora else 2)


def test_metadata_say_what_others_read(kind, model, tmp_path):
    adaptation, networks, tree = trained(VALUES["locon"], model)
    path = adaptation.export(tree, tmp_path, model, networks, "float16", {"ss_steps": "7"})
    found, metadata = read_safetensors(path)
    assert {tensor.dtype.name for tensor in found.values()} == {"float16"}
    assert metadata["ss_base_model_version"] == {"sd1": "sd_v1", "sdxl": "sdxl_base_v1-0"}[kind]
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "2.0")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "1.5"}
    assert metadata["ss_steps"] == "7" and metadata["ss_v2"] == "False"
    assert len(metadata["sshs_model_hash"]) == 64 and len(metadata["sshs_legacy_hash"]) == 8


def test_a_word_and_a_controlnet_are_read_by_diffusers(kind, folder, model, tmp_path):
    word, networks, tree = trained(adaptations.LearnedWord("<new>", vectors=2), model)
    path = word.export(tree, tmp_path, model, networks)
    ours = sdjax.StableDiffusion.from_pretrained(folder)
    assert ours.load_textual_inversion(path, token="<new>") == "<new>"
    wanted = host(word.apply(host(model.params), tree))
    for part in tree:
        for key, value in state(ours.params[part]).items():
            np.testing.assert_array_equal(value, state(wanted[part])[key])
    if kind == "sd1":
        theirs = peers.load(kind, folder)
        theirs.load_textual_inversion(str(path))
        ids = theirs.tokenizer.convert_tokens_to_ids(["<new>", "<new>_1"])
        rows = theirs.text_encoder.get_input_embeddings().weight[ids].detach().numpy()
        np.testing.assert_array_equal(rows, tree["text_encoder"])

    control, networks, tree = trained(adaptations.ControlNet(), model)
    network = diffusers.ControlNetModel.from_pretrained(
        control.export(tree, tmp_path, model, networks))
    assert_same_weights(state(tree["controlnet"]), network.state_dict())


# Modules that sd-scripts adapts, as it counts them when it starts; with convolutions in brackets.
COUNTS = {
    "sd15": {"unet": 192, "text_encoder": 72},
    "sd21": {"unet": 192, "text_encoder": 138},
    "sdxl": {"unet": 722, "text_encoder": 72, "text_encoder_2": 192},
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_networks_have_the_modules_that_sd_scripts_adapts(name):
    configs = published(name)
    base = {"unet": unet_shapes(UNetConfig.from_dict(configs["unet"]))}
    for part in ("text_encoder", "text_encoder_2"):
        if part in configs:
            base[part] = text_shapes(TextEncoderConfig.from_dict(configs[part]))
    chosen = adaptations.LoRA(rank=4, text_encoder=True).chosen(base)
    assert {part: len(paths) for part, paths in chosen.items()} == COUNTS[name]
    convolutions = adaptations.LoRA(rank=4, conv_rank=4).chosen(base)["unet"]
    assert len(convolutions) == {"sd15": 278, "sd21": 278, "sdxl": 788}[name]
    family = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}[name]
    weights = {part: state_from_params(tree) for part, tree in base.items()}
    names = [
        sd_scripts_name(part, state_key((*path, "kernel")).removesuffix(".weight"),
                        weights[part], 2, family)
        for part, paths in {**chosen, "unet": convolutions}.items() for path in paths
    ]
    assert len(set(names)) == len(names)
    examples = {
        "sd15": ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
                 "lora_unet_mid_block_attentions_0_proj_in",
                 "lora_unet_up_blocks_0_upsamplers_0_conv",
                 "lora_te_text_model_encoder_layers_11_mlp_fc2"],
        "sd21": ["lora_te_text_model_encoder_layers_22_self_attn_out_proj",
                 "lora_unet_down_blocks_1_resnets_0_time_emb_proj"],
        "sdxl": ["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
                 "lora_unet_middle_block_1_proj_in", "lora_unet_input_blocks_1_0_in_layers_2",
                 "lora_unet_output_blocks_2_2_conv", "lora_unet_input_blocks_3_0_op",
                 "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                 "lora_te2_text_model_encoder_layers_31_self_attn_k_proj"],
    }[name]
    assert set(examples) <= set(names)
