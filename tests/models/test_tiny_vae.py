import json

import diffusers
import jax
import jax.numpy as jnp
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models.tiny_vae import TinyVAE, TinyVAEConfig
from tests.models.peers import (
    manifest,
    nchw,
    nhwc,
    params_of,
    randomised,
    relative_error,
    state_shapes,
)

SMALL = TinyVAEConfig(
    encoder_block_out_channels=(8, 8, 8),
    decoder_block_out_channels=(6, 6, 6),
    num_encoder_blocks=(1, 2, 1),
    num_decoder_blocks=(1, 2, 1),
    latent_channels=5,
)


def peer_of(config):
    torch.manual_seed(0)
    return randomised(diffusers.AutoencoderTiny.from_config(config.to_dict()))


def test_taesd_has_every_key_and_shape():
    params = jax.eval_shape(TinyVAE().init, jax.random.key(0))
    assert state_shapes(params) == manifest("taesd")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_445_063


def test_it_equals_diffusers():
    peer, vae = peer_of(SMALL), TinyVAE(SMALL)
    images = jax.random.uniform(jax.random.key(1), (2, 16, 8, 3), minval=-1.0)
    with torch.no_grad():
        latents = peer.encode(nchw(images)).latents
        # The decoder bounds its input: some of these lie far outside.
        decoded = peer.decode(4 * latents).sample
    params = params_of(peer)
    assert relative_error(jax.jit(vae.encode)(params, images), nhwc(latents)) <= 5e-5
    ours = jax.jit(vae.decode)(params, jnp.asarray(nhwc(4 * latents)))
    assert relative_error(ours, nhwc(decoded)) <= 5e-5


def test_configuration_survives_diffusers(tmp_path):
    peer_of(SMALL).save_config(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert TinyVAEConfig.from_dict(saved) == SMALL
    assert TinyVAEConfig.from_dict(SMALL.to_dict()) == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor"),
        ({"encoder_block_out_channels": [8, 8, 16]}, "equal encoder_block_out_channels"),
        ({"num_decoder_blocks": [1, 1]}, "num_decoder_blocks"),
        ({"norm_num_groups": 4}, "norm_num_groups"),
    ],
)
def test_configurations_it_cannot_follow_are_refused(change, message):
    with pytest.raises(SdjaxError, match=message):
        TinyVAEConfig.from_dict({**SMALL.to_dict(), **change})


def test_arrays_of_a_wrong_shape_are_refused():
    with pytest.raises(SdjaxError, match="multiples of 4"):
        TinyVAE(SMALL).encode({}, jnp.zeros((1, 14, 16, 3)))
    with pytest.raises(SdjaxError, match="latents must be"):
        TinyVAE(SMALL).decode({}, jnp.zeros((1, 4, 4, 4)))
