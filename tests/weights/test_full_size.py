"""Stable Diffusion 1.5 in its real size, with random weights, against PyTorch."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import sdjax
from sdjax.weights import infer, single_file
from sdjax.weights.names import params_from_state
from sdjax.weights.tensors import lazy

pytestmark = pytest.mark.full

LARGEST = 5e-5  # relative error in float32


def state_of(network):
    return {key: lazy(value.numpy()) for key, value in network.state_dict().items()}


def relative_error(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def normal(*shape):
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


def torch_image(array):
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def test_unet():
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        state = state_of(theirs)
        x, context = normal(2, 16, 16, 4), normal(2, 77, 768)
        expected = theirs(torch_image(x), torch.tensor([999, 3]), torch.from_numpy(context)).sample
    config = sdjax.UNetConfig.from_dict(infer.unet_config(state))
    params = params_from_state(state)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 859_520_964
    del theirs, state
    unet = jax.jit(sdjax.UNet(config).apply)
    ours = unet({"params": params}, x, jnp.array([999.0, 3.0]), context)
    assert relative_error(ours.transpose(0, 3, 1, 2), expected) < LARGEST


def test_vae():
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    state = state_of(theirs)
    vae = sdjax.VAE(sdjax.VAEConfig.from_dict(infer.vae_config(state)))
    params = params_from_state(state)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 83_653_863
    images, z = normal(1, 64, 64, 3), normal(1, 8, 8, 4)
    with torch.no_grad():
        mean = theirs.encode(torch_image(images)).latent_dist.mean
        decoded = theirs.decode(torch_image(z)).sample
    assert relative_error(jax.jit(vae.encode)(params, images).transpose(0, 3, 1, 2), mean) < LARGEST
    assert relative_error(jax.jit(vae.decode)(params, z).transpose(0, 3, 1, 2), decoded) < LARGEST


def test_clip_l():
    torch.manual_seed(0)
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
    ).eval()
    state = single_file.split_parts(state_of(theirs))["text_encoder"]
    text = sdjax.TextEncoder(sdjax.TextEncoderConfig.from_dict(infer.text_config(state)))
    params = params_from_state(state)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 123_060_480
    ids = np.random.RandomState(0).randint(0, 49406, (2, 77)).astype(np.int32)
    ids[:, 0], ids[:, 20:] = 49406, 49407
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).last_hidden_state
    ours = jax.jit(text.apply)({"params": params}, ids).last_hidden_state
    assert relative_error(ours, expected) < LARGEST
