"""T2I-Adapter against diffusers': its features, a U-Net with them, and the published shapes."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from tests.models.peers import nchw, nhwc, params_of, randomised, relative_error, state_shapes

LIGHT = {"channels": (320, 640, 1280), "num_res_blocks": 4, "adapter_type": "light_adapter"}
PUBLISHED = {
    "sd15": T2IAdapterConfig(),
    "sd15_light": T2IAdapterConfig(**LIGHT),
    "sdxl": T2IAdapterConfig(adapter_type="full_adapter_xl", downscale_factor=16),
}
SMALL = {
    "full": T2IAdapterConfig(3, (8, 16, 16), 2, 2),
    "grey": T2IAdapterConfig(1, (8, 16, 16), 1, 4),
    "light": T2IAdapterConfig(3, (8, 16), 3, 2, "light_adapter"),
    "xl": T2IAdapterConfig(3, (8, 16, 24, 24), 2, 4, "full_adapter_xl"),
}


def peer_of(config, seed=0):
    torch.manual_seed(seed)
    return randomised(diffusers.T2IAdapter.from_config(config.to_dict()), seed)


def picture(config, height=7, width=5, batch=2):
    """Sides in features of the first level: odd, so that halving meets an edge."""
    factor = config.downscale_factor
    shape = (batch, factor * height, factor * width, config.in_channels)
    return jax.random.uniform(jax.random.key(1), shape)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_adapters_have_every_key_and_shape(name):
    config = PUBLISHED[name]
    zeros = jnp.zeros((1, 64, 64, 3))
    params = jax.eval_shape(T2IAdapter(config).init, jax.random.key(0), zeros)["params"]
    with torch.device("meta"):
        peer = diffusers.T2IAdapter.from_config(config.to_dict())
    theirs = {key: tuple(tensor.shape) for key, tensor in peer.state_dict().items()}
    assert state_shapes(params) == theirs


@pytest.mark.parametrize("name", SMALL)
def test_features_equal_diffusers(name):
    config = SMALL[name]
    peer, shown = peer_of(config), picture(config)
    with torch.no_grad():
        theirs = peer(nchw(shown))
    ours = jax.jit(T2IAdapter(config).apply)({"params": params_of(peer)}, shown)
    assert len(ours) == len(theirs) == len(config.levels)
    for a, b, (factor, width) in zip(ours, theirs, config.levels, strict=True):
        assert relative_error(a, nhwc(b)) <= 1e-5
        sides = (-(-side // factor) for side in shown.shape[1:3])
        assert a.shape == (2, *sides, width)


SD = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
UNETS = {
    "full": UNetConfig(**SD),
    "light": UNetConfig(**SD),
    "xl": UNetConfig(
        **SD | {
            "block_out_channels": (8, 16, 24),
            "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_with_features_equals_diffusers(name):
    """With a ControlNet's residuals as well, which diffusers has no pipeline for."""
    adapter, config = SMALL[name], UNETS[name]
    unet = randomised(diffusers.UNet2DConditionModel.from_config(config.to_dict()), seed=1)
    x = jax.random.normal(jax.random.key(2), (2, 8, 8, 4))
    context = jax.random.normal(jax.random.key(3), (2, 5, 12))
    shown = picture(adapter, *(2 * 8 // adapter.downscale_factor,) * 2)
    peer, rng = peer_of(adapter), np.random.default_rng(0)
    sides = (8, 8, 8, 4, 4, 4, 2, 2, 2)
    widths = np.repeat(config.block_out_channels, 3)
    widths = (widths[0], *widths[:2], widths[0], *widths[3:5], widths[3], *widths[6:8])
    skips = [
        np.float32(rng.standard_normal((2, side, side, width)))
        for side, width in zip(sides, widths, strict=True)
    ]
    middle = np.float32(rng.standard_normal((2, 2, 2, widths[-1])))
    with torch.no_grad():
        theirs = unet(
            nchw(x), 300, torch.tensor(context.tolist()),
            down_block_additional_residuals=[nchw(skip) for skip in skips],
            mid_block_additional_residual=nchw(middle),
            down_intrablock_additional_residuals=peer(nchw(shown)),
        ).sample  # fmt: skip

    @jax.jit
    def steered(adapter_params, params):
        features = T2IAdapter(adapter).apply({"params": adapter_params}, shown)
        return UNet(config).apply(
            {"params": params}, x, jnp.float32(300), context, controls=(tuple(skips), middle),
            features=features,
        )  # fmt: skip

    assert relative_error(steered(params_of(peer), params_of(unet)), nhwc(theirs)) <= 5e-5


def test_features_of_another_shape_are_refused():
    config, params = UNETS["full"], jax.random.key(0)
    x, context = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 5, 12))
    for features, message in (
        ((x, x), "expected 3, one for each level, or one more for the middle, got 2"),
        ((jnp.zeros((1, 1, 1, 8)),) * 3, r"expected \(1, 8, 8, 8\) at this level"),
    ):
        with pytest.raises(SdjaxError, match=message):
            UNet(config).init(params, x, jnp.zeros(1), context, features=features)


def test_seamless_features_roll_with_the_picture():
    config = SMALL["full"]
    network, shown = T2IAdapter(config, tile=(True, True)), picture(config, 8, 8, 1)
    params = {"params": params_of(peer_of(config))}
    whole, rolled = (
        network.apply(params, one) for one in (shown, jnp.roll(shown, (8, 8), (1, 2)))
    )
    for a, b, (factor, _) in zip(whole, rolled, config.levels, strict=True):
        np.testing.assert_allclose(jnp.roll(a, (8 // factor,) * 2, (1, 2)), b, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter_type": "style"}, "adapter_type"),
        ({"adapter_type": "full_adapter_xl", "channels": [8, 8, 16, 24]}, "from the third on"),
        ({"act_fn": "relu"}, "unknown field act_fn"),
    ],
)
def test_configurations_it_cannot_follow_are_refused(change, message):
    with pytest.raises(SdjaxError, match=message):
        T2IAdapterConfig.from_dict({**SMALL["full"].to_dict(), **change})


def test_pictures_of_another_shape_are_refused():
    config = SMALL["full"]
    for shape in ((1, 7, 8, 3), (1, 8, 8, 1), (8, 8, 3)):
        with pytest.raises(SdjaxError, match="multiples of 2"):
            T2IAdapter(config).init(jax.random.key(0), jnp.zeros(shape))
