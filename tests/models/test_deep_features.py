"""A U-Net's deep features kept for a later evaluation, beside diffusers' modules called one by one."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import sdjax
from tests.models.peers import randomised
from tests.weights.small import UNET_SD1


def to_torch(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.mark.parametrize("layers", [1, 2])
def test_the_finest_level_alone_takes_what_was_beneath_it(layers, tmp_path):
    torch.manual_seed(0)
    peer = randomised(diffusers.UNet2DConditionModel(**{**UNET_SD1, "layers_per_block": layers}))
    peer.save_pretrained(tmp_path)
    network, params = sdjax.UNet.from_pretrained(tmp_path)
    random = np.random.default_rng(0)
    first, x = (random.normal(size=(2, 8, 8, 4)).astype(np.float32) for _ in range(2))
    context = random.normal(size=(2, 5, 24)).astype(np.float32)
    times = np.float32([700, 650])

    text = torch.from_numpy(context)
    entered = []
    last = peer.up_blocks[-1]
    hook = last.resnets[1].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    with torch.no_grad():
        before = peer(to_torch(first), torch.tensor(times[0]), text).sample
        deep = entered[0][:, :-16]  # without the skip of 16 channels
        hook.remove()
        emb = peer.time_embedding(peer.time_proj(torch.tensor(times[1:])))
        h = peer.conv_in(to_torch(x))
        skips = [h]
        for resnet, attention in list(zip(
            peer.down_blocks[0].resnets, peer.down_blocks[0].attentions))[:layers - 1]:
            h = attention(resnet(h, emb), text).sample
            skips.append(h)
        h = deep
        for resnet, attention in list(zip(last.resnets, last.attentions))[1:]:
            h = attention(resnet(torch.cat([h, skips.pop()], 1), emb), text).sample
        assert not skips
        wanted = peer.conv_out(peer.conv_act(peer.conv_norm_out(h)))

    apply = jax.jit(network.apply, static_argnames="keeps_deep")
    given = {"params": params}
    found, left = apply(given, first, times[0], context, keeps_deep=True)
    np.testing.assert_allclose(found, np.moveaxis(before.numpy(), 1, -1), atol=2e-5)
    np.testing.assert_allclose(left, np.moveaxis(deep.numpy(), 1, -1), atol=2e-5)
    found = apply(given, x, times[1], context, deep=left)
    np.testing.assert_allclose(found, np.moveaxis(wanted.numpy(), 1, -1), atol=2e-5)
    # With what it would have found itself it is the whole network.
    whole, own = apply(given, x, times[1], context, keeps_deep=True)
    np.testing.assert_allclose(apply(given, x, times[1], context, deep=own), whole, atol=2e-6)
    assert jnp.abs(whole - found).max() > 1e-3
