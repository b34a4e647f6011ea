"""Seamless networks: what stands beyond an edge is what stands at the opposite one."""

import dataclasses

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.models.controlnet import ControlNet, ControlNetConfig
from sdjax.models.convolution import convolve
from sdjax.models.layers import UpsampleConv
from sdjax.models.tiny_vae import TinyVAE, TinyVAEConfig
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.models.vae import DOWN_BLOCK, UP_BLOCK, VAE, VAEConfig
from tests.models.peers import nchw, nhwc, params_of, randomised, relative_error

AXES = {"y": (True, False), "x": (False, True), "xy": (True, True)}
VAE_CONFIG = VAEConfig(
    block_out_channels=(8, 16),
    down_block_types=(DOWN_BLOCK,) * 2,
    up_block_types=(UP_BLOCK,) * 2,
    norm_num_groups=4,
)
ENCODER = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
UNET_CONFIG = UNetConfig(**ENCODER, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
CONTEXT = np.random.default_rng(2).normal(size=(1, 5, 12)).astype(np.float32)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(init, *arguments):
    """Parameters of a network, all of them random: a zero convolution shows nothing."""
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(
        tree, [0.2 * random(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
    )


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(
    ("side", "padding", "stride", "groups"),
    [
        (3, ((1, 1), (1, 1)), 1, 1),
        (2, ((1, 0), (0, 1)), 1, 1),
        (3, ((0, 1), (0, 1)), 2, 1),
        (3, ((1, 1), (1, 1)), 2, 1),
        (7, ((3, 3), (3, 3)), 1, 4),
    ],
)
def test_a_convolution_sees_a_wall_of_tiles(axes, side, padding, stride, groups):
    tile = AXES[axes]
    x, kernel = random(2, 4, 6, 4), random(side, side, 4 // groups, 4, seed=1)
    wall = jnp.tile(x, (1, *(3 if wrap else 1 for wrap in tile), 1))
    expected = convolve(wall, kernel, padding, stride, groups)
    for axis, wrap in enumerate(tile, 1):
        size = x.shape[axis] // stride
        expected = jax.lax.slice_in_dim(expected, size, 2 * size, axis=axis) if wrap else expected
    ours = convolve(x, kernel, padding, stride, groups, tile)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [None, (7, 10)])
def test_so_does_a_convolution_of_an_upsampled_picture(size):
    """With an odd size the seam is in the cropped picture, as where PyTorch pads circularly."""
    x = random(1, 4, 5, 3)
    module = UpsampleConv(2, tile=(True, True))
    params = drawn(module.init, x)["params"]
    ours = module.apply({"params": params}, x, size)
    peer = torch.nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular")
    peer.weight.data = torch.from_numpy(params["kernel"].transpose(3, 2, 0, 1).copy())
    peer.bias.data = torch.from_numpy(params["bias"])
    large = torch.nn.functional.interpolate(nchw(x), scale_factor=2)
    large = large[:, :, : ours.shape[1], : ours.shape[2]]
    np.testing.assert_allclose(ours, nhwc(peer(large)), rtol=1e-5, atol=1e-5)


def unet(tile):
    network = UNet(UNET_CONFIG, tile=tile)
    return network, lambda params, x: network.apply({"params": params}, x, 500.0, CONTEXT)


def controlnet(tile):
    widths = {"conditioning_embedding_out_channels": (4, 8)}
    network = ControlNet(ControlNetConfig(**ENCODER, **widths), tile=tile)

    def residuals(params, picture):
        x = picture[:, ::2, ::2].mean(-1, keepdims=True) * jnp.arange(1.0, 5)
        return network.apply({"params": params}, x, 500.0, CONTEXT, picture)

    return network, residuals


def encoder(tile):
    vae = VAE(VAE_CONFIG, tile=tile)
    return vae, lambda params, x: vae.posterior(params, x)


def decoder(tile):
    vae = VAE(VAE_CONFIG, tile=tile)
    return vae, lambda params, x: vae.decode(params, x)


def tiny(tile):
    config = TinyVAEConfig(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    vae = TinyVAE(config, tile=tile)
    return vae, lambda params, x: vae.decode(params, vae.encode(params, x))


NETWORKS = {
    "U-Net": (unet, (1, 8, 8, 4)),
    "ControlNet": (controlnet, (1, 16, 16, 3)),
    "encoder": (encoder, (1, 12, 12, 3)),
    "decoder": (decoder, (1, 6, 6, 4)),
    "TAESD": (tiny, (1, 12, 12, 3)),
}


def params_for(name):
    build, shape = NETWORKS[name]
    network, _ = build((False, False))
    if not isinstance(network, nn.Module):
        return drawn(network.init)
    picture = [random(*shape)] if name == "ControlNet" else []
    return drawn(network.init, random(1, 8, 8, 4), 1.0, CONTEXT, *picture)["params"]


# The ControlNet is the U-Net's way down and the hint network, for which one axis will do.
@pytest.mark.parametrize(
    ("name", "axes"),
    [(name, axes) for name in NETWORKS for axes in ("y", "x") if (name, axes) != ("ControlNet", "y")],
)
def test_rolling_the_input_rolls_the_output_of_tiled_axes_only(name, axes):
    build, shape = NETWORKS[name]
    params, x = params_for(name), random(*shape)

    def error(apply, axis):
        """How far the result for x moved along an axis is from the moved result."""
        shift = 4
        pairs = zip(
            jax.tree.leaves(apply(params, x)),
            jax.tree.leaves(apply(params, np.roll(x, shift, axis))),
            strict=True,
        )
        worst = 0.0
        for plain, rolled in pairs:
            expected = np.roll(plain, shift * plain.shape[axis] // shape[axis], axis)
            worst = max(worst, np.abs(expected - rolled).max() / np.abs(plain).max())
        return worst

    apply = jax.jit(build(AXES[axes])[1])
    tiled, other = (1, 2) if axes == "y" else (2, 1)
    assert error(apply, tiled) < 1e-5
    assert error(apply, other) > 1e-3


def circular(peer):
    """The peer with every convolution padded from the opposite side."""
    for module in peer.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"
        if isinstance(module, diffusers.models.downsampling.Downsample2D) and not module.padding:
            # Its own padding, below and to the right, is no convolution's.
            pad = torch.nn.functional.pad
            module.forward = lambda x, conv=module.conv: conv(pad(x, (0, 1, 0, 1), "circular"))
    # PyTorch reads the mode into another field when a convolution is made.
    for module in peer.modules():
        if isinstance(module, torch.nn.Conv2d):
            sides = [padding for padding in reversed(module.padding) for _ in range(2)]
            module._reversed_padding_repeated_twice = sides
    return peer


def test_the_unet_equals_diffusers_with_circular_convolutions():
    config = dataclasses.replace(UNET_CONFIG, downsample_padding=0)
    torch.manual_seed(0)
    peer = randomised(diffusers.UNet2DConditionModel.from_config(config.to_dict()))
    params, x = params_of(peer), random(1, 8, 6, 4)
    with torch.no_grad():
        theirs = circular(peer)(nchw(x), 500.0, torch.from_numpy(CONTEXT)).sample
    network = UNet(config, tile=(True, True))
    ours = jax.jit(network.apply)({"params": params}, x, 500.0, CONTEXT)
    assert relative_error(ours, nhwc(theirs)) < 1e-5


def test_the_autoencoder_equals_diffusers_with_circular_convolutions():
    torch.manual_seed(0)
    peer = randomised(diffusers.AutoencoderKL.from_config(VAE_CONFIG.to_dict()))
    vae, params, x = VAE(VAE_CONFIG, tile=(True, True)), params_of(peer), random(1, 8, 12, 3)
    with torch.no_grad():
        latents = circular(peer).encode(nchw(x)).latent_dist.mean
        pictures = peer.decode(latents).sample

    @jax.jit
    def both(params, x):
        z = vae.encode(params, x)
        return z, vae.decode(params, z)

    ours = both(params, x)
    assert relative_error(ours[0], nhwc(latents)) < 5e-5
    assert relative_error(ours[1], nhwc(pictures)) < 5e-5
