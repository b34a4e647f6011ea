"""Every key, shape and parameter count of the published U-Nets, without allocating them."""

import math

import jax
import jax.numpy as jnp
import pytest

from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from tests.models.peers import manifest, state_shapes
from tests.models.variants import COUNTS, UNETS


def abstract_inputs(config):
    """Shape structs of the smallest inputs that `config` takes."""

    def struct(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    inputs = {"context": struct(1, 7, config.cross_attention_dim)}
    if config.addition_embed_type:
        ids = (config.projection_class_embeddings_input_dim - 1280) // 256
        inputs["added"] = {"text_embeds": struct(1, 1280), "time_ids": struct(1, ids)}
    if config.num_class_embeds:
        inputs["class_labels"] = struct(1, dtype=jnp.int32)
    return (struct(1, 16, 16, config.in_channels), struct(1)), inputs


@pytest.mark.parametrize("name", UNETS)
def test_keys_shapes_and_count(name):
    config = UNetConfig(**UNETS[name])
    args, kwargs = abstract_inputs(config)
    tree = jax.eval_shape(UNet(config).init, jax.random.key(0), *args, **kwargs)["params"]
    assert state_shapes(tree) == manifest(name)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == COUNTS[name]
