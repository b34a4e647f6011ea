import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models.controlnet import ControlNet, ControlNetConfig
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from tests.models.peers import (
    manifest,
    nchw,
    nhwc,
    params_of,
    randomised,
    relative_error,
    state_shapes,
)
from tests.models.variants import SD1, SD2, SDXL


def of_unet(fields):
    return ControlNetConfig(**{k: v for k, v in fields.items() if k != "up_block_types"})


FULL = {
    "sd15_controlnet": (of_unet(SD1), 361_279_120),
    "sd21_controlnet": (of_unet(SD2), 364_228_240),
    "sdxl_base_controlnet": (of_unet(SDXL), 1_251_014_160),
}
SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
HINT = {"conditioning_embedding_out_channels": (4, 8, 8, 12)}
XL = {
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,
}
VARIANTS = {
    "SD1": {},
    "SDXL": XL,
    "SSD-1B": {
        "transformer_layers_per_block": ((2, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 2,
    },
    "bgr": {"controlnet_conditioning_channel_order": "bgr"},
    "pooled": {"global_pool_conditions": True},
}


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def inputs_for(config):
    picture = jax.random.uniform(jax.random.key(4), (2, 64, 32, 3))
    inputs = [random(1, 2, 8, 4, 4), jnp.array([3.0, 700.0]), random(2, 2, 5, 12), picture]
    if config.addition_embed_type is None:
        return inputs, None
    ids = jnp.array([[64.0, 32, 0, 4, 64, 32]] * 2)
    return inputs, {"text_embeds": random(3, 2, 10), "time_ids": ids}


def peer_of(config):
    torch.manual_seed(0)
    return randomised(diffusers.ControlNetModel.from_config(config.to_dict()))


@pytest.mark.parametrize("name", FULL)
def test_published_models_have_every_key_and_shape(name):
    config, count = FULL[name]
    added = None
    if config.addition_embed_type:
        added = {"text_embeds": jnp.zeros((1, 1280)), "time_ids": jnp.zeros((1, 6))}
    params = jax.eval_shape(
        ControlNet(config).init,
        jax.random.key(0),
        jnp.zeros((1, 8, 8, 4)),
        jnp.zeros(1),
        jnp.zeros((1, 77, config.cross_attention_dim)),
        jnp.zeros((1, 64, 64, 3)),
        added,
    )["params"]
    assert state_shapes(params) == manifest(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("name", VARIANTS)
def test_residuals_equal_diffusers(name):
    config = ControlNetConfig(**SMALL | HINT | VARIANTS[name])
    peer = peer_of(config)
    (x, t, context, picture), added = inputs_for(config)
    torched = None
    if added is not None:
        torched = {k: torch.from_numpy(np.asarray(v).copy()) for k, v in added.items()}
    with torch.no_grad():
        theirs = peer(
            nchw(x),
            torch.from_numpy(np.asarray(t).copy()),
            torch.from_numpy(np.asarray(context).copy()),
            nchw(picture),
            added_cond_kwargs=torched,
        )
    params = {"params": params_of(peer)}
    down, middle = jax.jit(ControlNet(config).apply)(params, x, t, context, picture, added)
    assert len(down) == len(theirs.down_block_res_samples)
    for a, b in zip(down, theirs.down_block_res_samples, strict=True):
        assert relative_error(a, nhwc(b)) <= 5e-5
    assert relative_error(middle, nhwc(theirs.mid_block_res_sample)) <= 5e-5


def test_a_steered_unet_equals_diffusers():
    config = ControlNetConfig(**SMALL, **HINT)
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    unet_config = UNetConfig(**SMALL, up_block_types=up)
    control = peer_of(config)
    unet = randomised(diffusers.UNet2DConditionModel.from_config(unet_config.to_dict()), seed=1)
    (x, t, context, picture), _ = inputs_for(config)
    sample, steps, states = nchw(x), torch.tensor([3.0, 700.0]), torch.tensor(context.tolist())
    with torch.no_grad():
        given = control(sample, steps, states, nchw(picture), conditioning_scale=0.7)
        theirs = unet(
            sample,
            steps,
            states,
            down_block_additional_residuals=given.down_block_res_samples,
            mid_block_additional_residual=given.mid_block_res_sample,
        ).sample

    @jax.jit
    def steered(control, unet):
        controls = ControlNet(config).apply({"params": control}, x, t, context, picture)
        controls = jax.tree.map(lambda residual: 0.7 * residual, controls)
        return UNet(unet_config).apply({"params": unet}, x, t, context, controls=controls)

    assert relative_error(steered(params_of(control), params_of(unet)), nhwc(theirs)) <= 5e-5


def test_fresh_parameters_steer_nothing():
    config = ControlNetConfig(**SMALL, **HINT)
    inputs, _ = inputs_for(config)
    residuals, _ = jax.jit(ControlNet(config).init_with_output)(jax.random.key(0), *inputs)
    assert all((residual == 0).all() for residual in jax.tree.leaves(residuals))


def test_configuration_survives_diffusers(tmp_path):
    config = ControlNetConfig(**SMALL, **HINT, **XL)
    peer_of(config).save_config(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert ControlNetConfig.from_dict(saved) == config
    assert ControlNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controlnet_conditioning_channel_order": "grb"}, "channel_order"),
        ({"dropout": 0.1}, "dropout"),
        ({"act_fn": "relu"}, "act_fn"),
    ],
)
def test_configurations_it_cannot_follow_are_refused(change, message):
    with pytest.raises(SdjaxError, match=message):
        ControlNetConfig.from_dict({**ControlNetConfig(**SMALL).to_dict(), **change})


def test_a_picture_of_another_size_is_refused():
    config = ControlNetConfig(**SMALL, **HINT)
    (x, t, context, picture), _ = inputs_for(config)
    with pytest.raises(SdjaxError, match=r"\(2, 64, 32, 3\)"):
        ControlNet(config).init(jax.random.key(0), x, t, context, picture[:, :32])
    with pytest.raises(SdjaxError, match="picture: expected .* got uint8: bytes x become x / 255"):
        ControlNet(config).init(jax.random.key(0), x, t, context, picture.astype(jnp.uint8))
