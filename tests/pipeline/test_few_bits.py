"""Pipelines whose weights have few bits: their pictures, files, adapters, memory and programs."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.models.quantized import Quantized, Raised, is_narrow, narrow_leaves
from sdjax.weights.names import state_from_params
from tests.weights.small import random_pipeline

ASKED = {"steps": 3, "seed": 4, "output": "latents", "progress": False}


def widened(tree):
    """The same weights, none of them of few bits."""
    wide = lambda leaf: np.asarray(leaf) if is_narrow(leaf) else leaf  # noqa: E731
    return jax.tree.map(wide, tree, is_leaf=is_narrow)


def pictures(model, **options):
    return model.generate("red apple", **ASKED, **options)


@pytest.fixture(scope="module")
def model():
    return random_pipeline()


@pytest.fixture(scope="module")
def narrow(model):
    return model.quantized("nf4")


def compiled_in(function):
    """How many programs a call compiles."""
    found = []
    listen = lambda name, *_, **__: found.append(name) if "backend_compile" in name else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(found)


def test_pictures_are_those_of_the_wide_weights(model, narrow):
    assert len(narrow_leaves(narrow.params)) > 30
    assert not narrow_leaves(model.params)
    expected = pictures(model)
    model.params, before = widened(narrow.params), model.params
    wide = pictures(model)
    model.params = before
    np.testing.assert_allclose(pictures(narrow), wide, atol=2e-5)
    assert np.abs(expected - wide).max() > 1e-3


def test_another_model_of_the_kind_compiles_nothing(model, narrow):
    pictures(narrow)
    model.params, before = jax.tree.map(lambda leaf: 1.1 * leaf, model.params), model.params
    other = model.quantized("nf4")
    model.params = before
    assert compiled_in(lambda: pictures(other)) == 0
    assert compiled_in(lambda: pictures(other, guidance_scale=3.0, sampler="euler")) == 0


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4", "nf4"])
def test_folders_keep_the_bits(kind, model, tmp_path):
    model.quantized(kind).save_pretrained(tmp_path / "narrow")
    model.save_pretrained(tmp_path / "wide")
    sizes = {name: sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors"))
             for name in ("narrow", "wide")}
    assert sizes["narrow"] < 0.6 * sizes["wide"]  # of small kernels; headers among it
    read = sdjax.StableDiffusion.from_pretrained(tmp_path / "narrow")
    made = sdjax.StableDiffusion.from_pretrained(tmp_path / "wide", quantize=kind)
    for params in (read.params, made.params):
        jax.tree.map(np.testing.assert_array_equal, params, model.quantized(kind).params)
    again = sdjax.StableDiffusion.from_pretrained(tmp_path / "narrow", quantize="int8")
    assert {leaf.kind for leaf in narrow_leaves(again.params)} <= {"int8", kind}
    unet, params = sdjax.UNet.from_pretrained(tmp_path / "wide", quantize=kind)
    jax.tree.map(np.testing.assert_array_equal, params, read.params["unet"])


def lora(path, model, extra=None):
    """A file of sd-scripts for a linear layer and a convolution of each kind."""
    random = np.random.default_rng(5)
    modules = (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.resnets.0.conv1",
        "up_blocks.0.upsamplers.0.conv", "down_blocks.0.attentions.0.proj_in",
    )  # fmt: skip
    shapes = {key: tensor.shape for key, tensor in state_from_params(model.params["unet"]).items()}
    tensors = {}
    for module in modules:
        outputs, inputs, *taps = shapes[f"{module}.weight"]
        name = "lora_unet_" + module.replace(".", "_")
        draw = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
        tensors[f"{name}.lora_down.weight"] = draw(3, inputs, *taps)
        tensors[f"{name}.lora_up.weight"] = draw(outputs, 3, *(1 for _ in taps))
        tensors[f"{name}.alpha"] = np.float32(2)
        tensors |= {f"{name}.{key}": value(outputs) for key, value in (extra or {}).items()}
    save_file({key: np.asarray(value) for key, value in tensors.items()}, path)
    return path


def test_loras_are_added_where_a_kernel_is_used(model, narrow, tmp_path):
    path = lora(tmp_path / "a.safetensors", model)
    model.params, before = widened(narrow.params), model.params
    without = pictures(model)
    model.load_lora(path, 0.7)
    expected = pictures(model)
    own = narrow.quantized("nf4")
    own.load_lora(path, 0.7)
    assert sum(isinstance(leaf, Raised) for leaf in narrow_leaves(own.params)) == 4
    np.testing.assert_allclose(pictures(own), expected, atol=5e-5)
    assert np.abs(expected - without).max() > 1e-3
    # Strengths are values of the program; two adapters stand side by side.
    assert compiled_in(lambda: (own.set_lora_weights(a=0.0), pictures(own))) == 0
    np.testing.assert_allclose(pictures(own), without, atol=5e-5)
    own.set_lora_weights(a=0.3)
    own.load_lora(path, 0.4, name="b")
    np.testing.assert_allclose(pictures(own), expected, atol=5e-5)
    own.unload()
    jax.tree.map(np.testing.assert_array_equal, own.params, narrow.params)
    # Quantised with an adapter on top, and an adapter that is no sum of products.
    model.params = before
    dora = lora(tmp_path / "dora.safetensors", model, {"dora_scale": lambda n: np.ones((n, 1))})
    own.load_lora(dora)
    assert not any(isinstance(leaf, Raised) for leaf in narrow_leaves(own.params))
    model.params = widened(narrow.params)
    model.load_lora(dora)
    theirs, ours = (state_from_params(one.params["unet"]) for one in (model, own))
    for key, tensor in theirs.items():
        np.testing.assert_allclose(ours[key].load(), tensor.load(), rtol=1e-6, atol=1e-6)
    model.params = before


def test_learned_words_go_beside_a_table_of_few_bits(narrow, tmp_path):
    own = narrow.quantized("nf4")
    save_file({"<x>": np.ones((2, 24), np.float32)}, tmp_path / "x.safetensors")
    own.load_textual_inversion(tmp_path / "x.safetensors")
    def table(model):
        return model.params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    old, new = table(narrow), np.asarray(table(own))
    assert isinstance(old, Quantized)
    np.testing.assert_array_equal(new, np.concatenate([np.asarray(old), np.ones((2, 24))]))
    assert np.isfinite(pictures(own)).all()
