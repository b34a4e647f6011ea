"""Stable Video Diffusion's networks against diffusers'."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.models.vae import VAE, VAEConfig
from sdjax.weights.parts import unet_shapes, vae_shapes
from tests.models.peers import params_of, randomised, relative_error, state_shapes

FRAMES = 3
NET = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "num_attention_heads": (2, 4),
    "cross_attention_dim": 12,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 12,
    "transformer_layers_per_block": (2, 1),
    "num_frames": FRAMES,
}
CODER = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "layers_per_block": 2,
}


def without_class(config):
    return {key: value for key, value in config.items() if key != "_class_name"}


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    return randomised(diffusers.UNetSpatioTemporalConditionModel(**without_class(NET)))


def test_the_unet_equals_diffusers(peer):
    random = np.random.RandomState(0)
    x, context = np.float32(random.randn(2, FRAMES, 6, 8, 8)), np.float32(random.randn(2, 2, 12))
    t, ids = np.float32([0.3, -1.2]), np.float32([[6, 127, 0.02], [24, 3, 0.5]])
    with torch.no_grad():
        theirs = peer(
            torch.from_numpy(x.transpose(0, 1, 4, 2, 3).copy()), torch.from_numpy(t),
            torch.from_numpy(context), torch.from_numpy(ids),
        ).sample.numpy().transpose(0, 1, 3, 4, 2)  # fmt: skip
    network = UNet(UNetConfig.from_dict(NET))
    params = {"params": params_of(peer)}
    ours = jax.jit(network.apply)(params, x, t, context, {"time_ids": ids})
    assert ours.dtype == np.float32
    assert relative_error(ours, theirs) <= 1e-5
    # Every frame counts for every other.
    other = jax.jit(network.apply)(params, x.copy() + np.eye(3)[2, None, :, None, None, None], t,
                                   context, {"time_ids": ids})  # fmt: skip
    assert np.abs(other - ours)[:, 0].max() > 1e-3
    with pytest.raises(SdjaxError, match="expected added={'time_ids'} for this network"):
        network.apply(params, x, t, context)


def test_the_decoder_equals_diffusers():
    torch.manual_seed(0)
    peer = randomised(diffusers.AutoencoderKLTemporalDecoder(**without_class(CODER)))
    vae, params = VAE(VAEConfig.from_dict(CODER)), params_of(peer)
    random = np.random.RandomState(0)
    z, pictures = np.float32(random.randn(2 * FRAMES, 4, 6, 4)), np.float32(random.randn(2, 8, 12, 3))
    with torch.no_grad():
        given = torch.from_numpy(z.transpose(0, 3, 1, 2).copy())
        theirs = peer.decode(given, num_frames=FRAMES).sample.numpy().transpose(0, 2, 3, 1)
        given = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
        mean = peer.encode(given).latent_dist.mean.numpy().transpose(0, 2, 3, 1)
    ours = jax.jit(vae.decode, static_argnums=2)(params, z, FRAMES)
    assert relative_error(ours, theirs) <= 1e-5
    assert relative_error(jax.jit(vae.posterior)(params, pictures)[0], mean) <= 1e-5
    with pytest.raises(SdjaxError, match="6 latents are no clips of 4 frames"):
        vae.decode(params, z, 4)


def test_configurations_survive():
    unet, vae = UNetConfig.from_dict(NET), VAEConfig.from_dict(CODER)
    assert unet.of_clips and unet.num_frames == FRAMES
    assert UNetConfig.from_dict(unet.to_dict()) == unet
    assert VAEConfig.from_dict(vae.to_dict()) == vae
    peer = diffusers.UNetSpatioTemporalConditionModel.from_config(unet.to_dict())
    assert state_shapes(unet_shapes(unet)) == {k: tuple(t.shape) for k, t in peer.state_dict().items()}
    peer = diffusers.AutoencoderKLTemporalDecoder.from_config(vae.to_dict())
    assert state_shapes(vae_shapes(vae)) == {k: tuple(t.shape) for k, t in peer.state_dict().items()}


@pytest.mark.full
def test_the_published_ones_have_every_key_and_shape():
    with torch.device("meta"):
        unet = diffusers.UNetSpatioTemporalConditionModel()
        vae = diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            layers_per_block=2,
        )  # fmt: skip
    for peer, config, shapes in (
        (unet, UNetConfig, unet_shapes), (vae, VAEConfig, vae_shapes)
    ):  # fmt: skip
        given = {**peer.config, "_class_name": type(peer).__name__}
        given = {k: v for k, v in given.items() if k not in ("_use_default_values",)}
        ours = state_shapes(shapes(config.from_dict(given)))
        assert ours == {key: tuple(t.shape) for key, t in peer.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (NET, {"other": 1}, "unknown field other = 1"),
        (NET, {"down_block_types": ("DownBlock2D",) * 2}, "SpatioTemporal blocks go with each other"),
        (NET, {"block_out_channels": (16, 32)}, "multiples of norm_num_groups 32"),
        (CODER, {"layers_per_block": 1}, "layers_per_block must be 2"),
        (CODER, {"use_quant_conv": True}, "unknown field use_quant_conv"),
    ],
)
def test_what_is_not_known_is_refused(config, change, message):
    kind = UNetConfig if config is NET else VAEConfig
    with pytest.raises(SdjaxError, match=message):
        kind.from_dict(config | change)
