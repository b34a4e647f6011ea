import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sdjax.errors import SdjaxError
from sdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from tests.models.peers import nchw, params_of, randomised, relative_error, state_shapes

PROJECTED = ("CLIPVisionModelWithProjection",)
H14 = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1024,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "gelu",
}
# The published configurations, and their parameters in millions as open_clip's table has them.
FULL = {
    "L14": (
        CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            projection_dim=768,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            architectures=PROJECTED,
        ),
        303.97,
    ),
    "H14": (CLIPVisionConfig(**H14, architectures=PROJECTED), 632.08),
    "bigG14": (
        CLIPVisionConfig(
            **H14
            | {
                "hidden_size": 1664,
                "intermediate_size": 8192,
                "projection_dim": 1280,
                "num_hidden_layers": 48,
            },
            architectures=PROJECTED,
        ),
        1844.91,
    ),
}
SMALL = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=80,
    projection_dim=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=20,
    patch_size=6,  # with two pixels that no patch covers
)


def theirs_of(config):
    kind = getattr(transformers, config.architectures[0])
    return kind(transformers.CLIPVisionConfig(**config.to_dict()))


def peer_of(config):
    torch.manual_seed(0)
    return randomised(theirs_of(config))


def pictures(size=20):
    return jax.random.normal(jax.random.key(1), (2, size, size, 3))


@pytest.mark.parametrize("name", FULL)
def test_published_models_have_every_key_and_shape(name):
    config, millions = FULL[name]
    ours = jax.eval_shape(CLIPVision(config).init, jax.random.key(0), pictures(224))["params"]
    with torch.device("meta"):
        theirs = theirs_of(config)
    assert state_shapes(ours) == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert round(sum(leaf.size for leaf in jax.tree.leaves(ours)) / 1e6, 2) == millions


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("architectures", [PROJECTED, ("CLIPVisionModel",)])
def test_states_equal_transformers(hidden_act, architectures):
    config = dataclasses.replace(SMALL, hidden_act=hidden_act, architectures=architectures)
    peer = peer_of(config)
    with torch.no_grad():
        theirs = peer(nchw(pictures()), output_hidden_states=True)
    ours = jax.jit(CLIPVision(config).apply)({"params": params_of(peer)}, pictures())
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert relative_error(a, b) <= 1e-5
    assert relative_error(ours.last_hidden_state, theirs.last_hidden_state) <= 1e-5
    pooled = theirs.image_embeds if config.projected else theirs.pooler_output
    assert relative_error(ours.pooled, pooled) <= 1e-5


def test_bfloat16_computes_in_it():
    config = dataclasses.replace(SMALL, num_hidden_layers=1)
    params = {"params": params_of(peer_of(config))}
    output = jax.jit(CLIPVision(config, jnp.bfloat16).apply)(params, pictures())
    assert output.last_hidden_state.dtype == output.pooled.dtype == jnp.bfloat16
    exact = jax.jit(CLIPVision(config).apply)(params, pictures())
    assert relative_error(output.pooled.astype(jnp.float32), exact.pooled) < 0.05


def test_configuration_survives_transformers(tmp_path):
    config = dataclasses.replace(SMALL, architectures=PROJECTED)
    peer_of(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert CLIPVisionConfig.from_dict(saved) == config
    assert CLIPVisionConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"architectures": ["SiglipVisionModel"]}, "SiglipVisionModel"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"image_size": [224, 200]}, "image_size must be one whole number"),
    ],
)
def test_configurations_it_cannot_follow_are_refused(change, message):
    with pytest.raises(SdjaxError, match=message):
        CLIPVisionConfig.from_dict({**SMALL.to_dict(), **change})


def test_pictures_of_another_size_or_kind_are_refused():
    encoder, key = CLIPVision(SMALL), jax.random.key(0)
    with pytest.raises(SdjaxError, match=r"must be \[batch, 20, 20, 3\], got shape \(2, 24, 24, 3\)"):
        encoder.init(key, pictures(24))
    with pytest.raises(SdjaxError, match="got uint8: sdjax.data.clip_picture prepares"):
        encoder.init(key, np.zeros((1, 20, 20, 3), np.uint8))
