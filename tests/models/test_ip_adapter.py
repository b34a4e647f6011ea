"""IP-Adapter against diffusers: a U-Net that looks at pictures, by each kind of projection."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models.ip_adapter import IPAdapter, IPAdapterConfig, cross_attentions, placed
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.weights.ip_adapter import adapter_shapes
from sdjax.weights.names import state_from_params
from tests.models.peers import nchw, nhwc, params_of, randomised, relative_error
from tests.models.variants import SD1, SDXL
from tests.weights.small import random_params

UNET = UNetConfig(
    block_out_channels=(8, 16, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    transformer_layers_per_block=(1, 1, 2),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=12,
)
LAYERS = tuple(width for _, width in cross_attentions(UNET))
KINDS = {
    "plain": IPAdapterConfig("plain", 10, 12, LAYERS, tokens=4),
    "plus": IPAdapterConfig("plus", 10, 12, LAYERS, tokens=5, width=20, heads=2, depth=4),
    "full": IPAdapterConfig("full", 10, 12, LAYERS),
}


def random_adapter(config, seed=0):
    """(parameters, diffusers' two dictionaries) of an IP-Adapter."""
    params = random_params(adapter_shapes(config), seed)
    files: dict = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in state_from_params(params).items():
        part, _, name = key.partition(".")
        files[part][name] = torch.from_numpy(np.array(tensor.load(), order="C"))
    return params, files


def embeddings(config, seed, pictures):
    """What CLIP would give of several pictures for each of two images."""
    states = () if config.kind == "plain" else (257,)
    key = jax.random.key(seed)
    return jax.random.normal(key, (2, pictures, *states, config.input_width))


def torched(array):
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize("names", [("plain",), ("plus",), ("full",), ("plain", "plus")])
def test_a_unet_that_looks_at_pictures_equals_diffusers(names):
    """One or two adapters, the second with two pictures, each at its own scale."""
    configs, scales = [KINDS[name] for name in names], [0.7, 1.3][: len(names)]
    peer = randomised(diffusers.UNet2DConditionModel.from_config(UNET.to_dict()))
    unet_params = params_of(peer)
    adapters = [random_adapter(config, seed) for seed, config in enumerate(configs)]
    peer._load_ip_adapter_weights([files for _, files in adapters], low_cpu_mem_usage=False)
    for processor in peer.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = scales
    given = [embeddings(config, i, 1 + i) for i, config in enumerate(configs)]
    x = jax.random.normal(jax.random.key(8), (2, 8, 8, 4))
    context = jax.random.normal(jax.random.key(9), (2, 5, 12))
    with torch.no_grad():
        theirs = peer(
            nchw(x), 300, torched(context),
            added_cond_kwargs={"image_embeds": [torched(one) for one in given]},
        ).sample  # fmt: skip

    @jax.jit
    def ours(params, adapter_params, given, scales):
        seen = [
            IPAdapter(config).apply({"params": own}, one)
            for config, own, one in zip(configs, adapter_params, given, strict=True)
        ]
        variables = {"params": params, "references": placed(UNET, seen, scales)}
        return UNet(UNET).apply(variables, x, jnp.float32(300), context)

    scaled = [jnp.full(2, scale) for scale in scales]
    made = ours(unet_params, [own for own, _ in adapters], given, scaled)
    assert relative_error(made, nhwc(theirs)) <= 2e-5
    plain = UNet(UNET).apply({"params": unet_params}, x, jnp.float32(300), context)
    assert relative_error(made, plain) > 1e-3
    off = ours(unet_params, [own for own, _ in adapters], given, [0 * one for one in scaled])
    assert relative_error(off, plain) <= 1e-5


@pytest.mark.parametrize(("fields", "count"), [(SD1, 16), (SDXL, 70)])
def test_the_attentions_of_published_models_are_in_the_files_order(fields, count):
    config = UNetConfig(**fields)
    with torch.device("meta"):
        peer = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    names = [name for name in peer.attn_processors if "attn2" in name]
    found = cross_attentions(config)
    assert [".".join((*path, "processor")) for path, _ in found] == names
    assert len(found) == count
    for path, width in found:
        assert peer.get_submodule(".".join(path)).to_q.out_features == width


def test_embeddings_of_another_shape_are_refused():
    for config, shape in ((KINDS["plain"], (1, 10)), (KINDS["plus"], (1, 1, 10))):
        with pytest.raises(SdjaxError, match="axes, the last of 10"):
            IPAdapter(config).init(jax.random.key(0), jnp.zeros(shape))
