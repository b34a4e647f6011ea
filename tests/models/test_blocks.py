"""Single blocks of the U-Net against PyTorch diffusers with random weights."""

import jax
import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from sdjax.models.blocks import ResnetBlock
from sdjax.models.transformer import SpatialTransformer
from tests.models.peers import nchw, nhwc, params_of, randomised, relative_error


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("features", [16, 24])
def test_residual_block_equals_diffusers(features, scale_shift):
    x, emb = random(0, 2, 7, 6, 16), random(1, 2, 20)
    kind = "scale_shift" if scale_shift else "default"
    peer = randomised(
        ResnetBlock2D(
            in_channels=16, out_channels=features, temb_channels=20, groups=8, eps=1e-5,
            time_embedding_norm=kind,
        )
    )  # fmt: skip
    block = ResnetBlock(features, groups=8, epsilon=1e-5, scale_shift=scale_shift)
    # diffusers applies the embedding's activation in every block, we once before all.
    got = jax.jit(block.apply)({"params": params_of(peer)}, x, jax.nn.silu(emb))
    with torch.no_grad():
        assert relative_error(got, nhwc(peer(nchw(x), torch.tensor(emb)))) < 1e-5


@pytest.mark.parametrize("option", [None, "use_linear_projection", "only_cross_attention"])
def test_transformer_block_equals_diffusers(option):
    x, context = random(0, 2, 7, 6, 32), random(1, 2, 5, 24)
    peer = randomised(
        Transformer2DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=32, num_layers=2,
            norm_num_groups=8, cross_attention_dim=24, **({option: True} if option else {}),
        )
    )  # fmt: skip
    block = SpatialTransformer(
        4, 2, 8, option == "use_linear_projection", option == "only_cross_attention"
    )
    got = jax.jit(block.apply)({"params": params_of(peer)}, x, context)
    with torch.no_grad():
        (expected,) = peer(nchw(x), torch.tensor(context), return_dict=False)
    assert relative_error(got, nhwc(expected)) < 1e-5
