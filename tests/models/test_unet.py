"""The U-Net against PyTorch diffusers with random weights, variant by variant."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from sdjax.errors import SdjaxError
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from tests.models.peers import nchw, nhwc, params_of, randomised, relative_error

SMALL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
SDXL = SMALL | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}
CONDITIONAL = {
    "sd1": SMALL,
    "sd1_inpaint": SMALL | {"in_channels": 9},
    "sd2": SMALL | {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "sdxl": SDXL | {"projection_class_embeddings_input_dim": 16 + 6 * 8},
    "refiner": SDXL
    | {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 16 + 5 * 8,
    },
    "upscaler": SMALL
    | {"in_channels": 7, "only_cross_attention": (True, False), "num_class_embeds": 10},
    "pooled_text": SMALL | {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "lcm": SMALL | {"time_cond_proj_dim": 12},
    # SSD-1B: other depths on the way up, and in each block, without attention in the middle
    "ssd": SDXL
    | {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 2,
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, (2, 2), (1, 2)),
        "reverse_transformer_layers_per_block": ((1, 2, 3), (2, 1, 1), 1),
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
    # KOALA has no middle
    "no_middle": SMALL | {"mid_block_type": None},
    "lists": SMALL
    | {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        "layers_per_block": (1, 2, 1),
        "cross_attention_dim": (None, 24, 24),
        "attention_head_dim": (2, 4, 8),
        "only_cross_attention": (False, True, False),
        "transformer_layers_per_block": (1, 2, (3,)),
        "reverse_transformer_layers_per_block": ((1, 2), 1, 1),
    },
    "scale_shift": SMALL
    | {
        "resnet_time_scale_shift": "scale_shift",
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": (1, 2),
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 6,
    },
}
PIXEL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "in_channels": 3,
    "out_channels": 3,
    "cross_attention_dim": None,
}
PIXELS = {
    "ddpm": PIXEL
    | {
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "class_labels": PIXEL | {"attention_head_dim": 16, "num_class_embeds": 5},
    "learned_variance": PIXEL
    | {"out_channels": 6, "add_attention": False, "center_input_sample": True},
}


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def condition_inputs(config, size=(8, 8)):
    """The same random inputs for our network and for the peer, as keyword arguments."""
    x, context = random(0, 2, *size, config.in_channels), random(1, 2, 5, 24)
    t = np.array([3.0, 801.5], np.float32)
    ours = {"x": x, "t": t, "context": context}
    theirs = {"sample": nchw(x), "timestep": torch.tensor(t)}
    theirs["encoder_hidden_states"] = torch.tensor(context)
    if config.addition_embed_type == "text_time":
        ids = (config.projection_class_embeddings_input_dim - 16) // 8
        ours["added"] = {"text_embeds": random(2, 2, 16), "time_ids": 100 * abs(random(3, 2, ids))}
        theirs["added_cond_kwargs"] = {k: torch.tensor(v) for k, v in ours["added"].items()}
    if config.time_cond_proj_dim:
        ours["timestep_cond"] = random(4, 2, config.time_cond_proj_dim)
        theirs["timestep_cond"] = torch.tensor(ours["timestep_cond"])
    if config.num_class_embeds or config.class_embed_type:
        labels = random(5, 2, 6) if config.class_embed_type else np.array([1, 7])
        ours["class_labels"], theirs["class_labels"] = labels, torch.tensor(labels)
    return ours, theirs


def compare(peer, config, ours, theirs, **options):
    with torch.no_grad():
        expected = nhwc(peer(**theirs).sample)
    run = jax.jit(UNet(config, **options).apply)
    got = run({"params": params_of(peer)}, **ours)
    assert got.dtype == jnp.float32
    assert relative_error(got, expected) < 5e-5


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_network_equals_diffusers(name):
    config = UNetConfig.from_dict(json.loads(json.dumps(CONDITIONAL[name])))
    peer = randomised(UNet2DConditionModel.from_config(config.to_dict()))
    compare(peer, config, *condition_inputs(config))


@pytest.mark.parametrize("name", PIXELS)
def test_pixel_network_equals_diffusers(name):
    config = UNetConfig(**PIXELS[name])
    assert config.to_dict()["_class_name"] == "UNet2DModel"
    peer = randomised(UNet2DModel.from_config(config.to_dict()))
    x, t = random(0, 2, 8, 8, 3), np.array([3, 801])
    ours, theirs = {"x": x, "t": t}, {"sample": nchw(x), "timestep": torch.tensor(t)}
    if config.num_class_embeds:
        ours["class_labels"] = np.array([0, 4])
        theirs["class_labels"] = torch.tensor([0, 4])
    compare(peer, config, ours, theirs)


@pytest.mark.parametrize("size", [(7, 9), (10, 5)])
def test_sizes_that_do_not_halve(size):
    levels = {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    }
    config = UNetConfig(**SMALL | levels)
    peer = randomised(UNet2DConditionModel.from_config(config.to_dict()))
    compare(peer, config, *condition_inputs(config, size))


def test_controls_are_added_to_skips_and_middle():
    config = UNetConfig(**SMALL)
    peer = randomised(UNet2DConditionModel.from_config(config.to_dict()))
    ours, theirs = condition_inputs(config)
    shapes = [(2, 8, 8, 32), (2, 8, 8, 32), (2, 4, 4, 32), (2, 4, 4, 64)]
    down = tuple(random(i, *shape) for i, shape in enumerate(shapes))
    middle = random(9, 2, 4, 4, 64)
    ours["controls"] = (down, middle)
    theirs["down_block_additional_residuals"] = tuple(nchw(residual) for residual in down)
    theirs["mid_block_additional_residual"] = nchw(middle)
    compare(peer, config, ours, theirs)


def test_remat_changes_memory_and_not_gradients():
    config = UNetConfig(**SMALL)
    ours, _ = condition_inputs(config)
    params = jax.jit(UNet(config).init)(jax.random.key(0), **ours)["params"]
    params = jax.tree.map(lambda p: p + 0.02 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), params)

    def loss(remat):
        unet = UNet(config, remat=remat)
        return lambda p: jnp.square(unet.apply({"params": p}, **ours)).mean()

    def kept(loss):
        """Numbers that the forward pass keeps for the backward pass."""
        backward = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    sizes = [kept(loss(remat)) for remat in (True, "dots_saveable", False)]
    assert sizes[0] < 0.6 * sizes[2] and sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(SdjaxError, match="remat is True, False, or one of .*, got 'dots'"):
        kept(loss("dots"))
    plain, rematted = (jax.jit(jax.grad(loss(remat)))(params) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rematted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6 + 1e-5 * np.abs(a).max())


def test_bfloat16_computes_close_and_returns_float32():
    config = UNetConfig(**SMALL)
    peer = randomised(UNet2DConditionModel.from_config(config.to_dict()))
    ours, theirs = condition_inputs(config)
    params = {"params": params_of(peer)}
    exact = UNet(config).apply(params, **ours)
    rough = UNet(config, dtype=jnp.bfloat16).apply(params, **ours)
    assert rough.dtype == jnp.float32
    assert relative_error(rough, exact) < 0.05


def test_dropout_needs_a_random_stream():
    config = UNetConfig(**SMALL | {"dropout": 0.5})
    ours, _ = condition_inputs(config)
    params = UNet(config).init(jax.random.key(0), **ours)
    params = jax.tree.map(lambda p: p + 0.1, params)
    unet = UNet(config)
    same = [unet.apply(params, **ours) for _ in range(2)]
    dropped = unet.apply(params, **ours, rngs={"dropout": jax.random.key(1)})
    assert np.array_equal(*same)
    assert not np.allclose(same[0], dropped)


@pytest.mark.parametrize("block", ["ConvNext", "ConvNextAttn", "ConvNextLinearAttn", "LinearAttn"])
def test_own_blocks_run_and_learn(block):
    config = UNetConfig(
        **PIXEL
        | {
            "down_block_types": ("DownBlock2D", f"{block}DownBlock2D"),
            "up_block_types": (f"{block}UpBlock2D", "ConvNextUpBlock2D"),
            "mid_block_type": "UNetMidBlock2DConvNextLinearAttn",
        }
    )
    assert config.class_name == "sdjax.UNet"
    x = random(0, 1, 8, 8, 3)
    unet = UNet(config)
    params = unet.init(jax.random.key(0), x, 5.0)
    params = jax.tree.map(lambda p: p + 0.02 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), params)
    gradients = jax.grad(lambda p: jnp.square(unet.apply(p, x, 5.0)).mean())(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("config", [CONDITIONAL["sdxl"], CONDITIONAL["pooled_text"], PIXELS["ddpm"]])
def test_configuration_survives_its_dict(config):
    config = UNetConfig(**config)
    again = UNetConfig.from_dict(config.to_dict())
    assert again == config and hash(again) == hash(config)


def test_missing_fields_take_the_defaults_of_the_class():
    pixel = UNetConfig.from_dict({"_class_name": "UNet2DModel", "_diffusers_version": "0.1"})
    assert pixel == UNetConfig.from_dict(dict(UNet2DModel().config) | {"_class_name": "UNet2DModel"})
    assert UNetConfig.from_dict({"_class_name": "UNet2DConditionModel"}) == UNetConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual_cross_attention": True}, "dual_cross_attention: expected one of"),
        ({"down_block_types": ["KDownBlock2D"] * 4}, "down_block_types: expected one of"),
        ({"block_out_channels": [32, 64]}, "expected 2 entries"),
        ({"invented": 3}, "unknown field invented"),
        ({"invented": 0}, "unknown field invented = 0"),
        ({"invented": []}, r"unknown field invented = \[\]"),
        ({"norm_num_groups": 7}, "multiples of norm_num_groups"),
        (
            {"transformer_layers_per_block": [1, [2, 2], 1, 1]},
            "reverse_transformer_layers_per_block: expected a list of the levels",
        ),
        ({"reverse_transformer_layers_per_block": 2}, "expected a list of the levels"),
        (
            {"reverse_transformer_layers_per_block": [1, 1, 1, [1, 2]]},
            r"one for each of a level's attentions \(here 3\), got \(1, 1, 1, \(1, 2\)\)",
        ),
        ({"transformer_layers_per_block": "2"}, "transformer_layers_per_block: expected whole num"),
        ({"cross_attention_dim": [768, 1024, 768, 768]}, "expected one width for all CrossAttn"),
        (
            {"addition_embed_type": "text", "addition_embed_type_num_heads": 7},
            "a divisor of the context's width 1280, got 7",
        ),
    ],
)
def test_configuration_that_is_not_supported(change, message):
    with pytest.raises(SdjaxError, match=message):
        UNetConfig.from_dict(change)


def test_fields_that_ask_for_nothing_are_passed_over():
    nothing = {"invented": None, "reinvented": False, "dual_cross_attention": None}
    assert UNetConfig.from_dict(nothing) == UNetConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((1, 8, 8, 3), np.float32)}, r"expected \[batch, height, width, 4\]"),
        ({"x": np.zeros((2, 8, 8, 4), np.uint8)}, "x: expected .* floating-point numbers, got uint8"),
        ({"context": np.zeros((2, 5, 24), int)}, "context: expected .* got int64"),
        ({"context": None}, r"expected \[batch, tokens, 24\], got None"),
        ({"class_labels": np.array([1])}, "takes no class_labels"),
        ({"timestep_cond": np.zeros((1, 2))}, "takes no timestep_cond"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    config = UNetConfig(**SMALL)
    ours, _ = condition_inputs(config)
    with pytest.raises(SdjaxError, match=message):
        jax.eval_shape(lambda: UNet(config).init(jax.random.key(0), **ours | change))


def test_every_field_has_a_value_of_diffusers():
    names = set(dict(UNet2DConditionModel.from_config(UNetConfig(**SMALL).to_dict()).config))
    written = set(UNetConfig(**SMALL).to_dict()) - {"_class_name"}
    assert written <= names
    assert {field.name for field in dataclasses.fields(UNetConfig)} >= written - {"act_fn"}
