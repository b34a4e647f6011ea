import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sdjax.errors import SdjaxError
from sdjax.models.clip import TextEncoder, TextEncoderConfig, end_positions
from tests.models.peers import manifest, params_of, randomised, relative_error, state_shapes

PROJECTED = ("CLIPTextModelWithProjection",)
FULL = {
    "clip_vit_l14_text": (
        TextEncoderConfig(
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
        ),
        123_060_480,
    ),
    "openclip_h_text_23layers_sd2": (
        TextEncoderConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        ),
        340_387_840,
    ),
    "openclip_bigG_text_sdxl": (
        TextEncoderConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1280,
            num_hidden_layers=32,
            num_attention_heads=20,
            hidden_act="gelu",
            architectures=PROJECTED,
        ),
        694_659_840,
    ),
}
SMALL = TextEncoderConfig(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=80,
    projection_dim=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=20,
    bos_token_id=97,
    eos_token_id=98,
    pad_token_id=0,
)
# Begin, words, end, padding; the second row is padded with the end token, the third is full.
IDS = np.array(
    [
        [97, 4, 8, 15, 98, 0, 0, 0, 0],
        [97, 16, 98, 98, 98, 98, 98, 98, 98],
        [97, 23, 42, 7, 96, 1, 3, 5, 98],
    ],
    np.int32,
)


def peer_of(config):
    theirs = transformers.CLIPTextConfig(**config.to_dict())
    kind = getattr(transformers, config.architectures[0])
    torch.manual_seed(0)
    return randomised(kind(theirs))


def run(config, peer, ids=IDS, **options):
    apply = jax.jit(partial(TextEncoder(config).apply, **options))
    return apply({"params": params_of(peer)}, ids)


@pytest.mark.parametrize("name", FULL)
def test_published_models_have_every_key_and_shape(name):
    config, count = FULL[name]
    ids = jnp.zeros((1, 77), jnp.int32)
    params = jax.eval_shape(TextEncoder(config).init, jax.random.key(0), ids)["params"]
    assert state_shapes(params) == manifest(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos_token_id", [98, 2])
def test_states_equal_transformers(hidden_act, eos_token_id):
    config = dataclasses.replace(SMALL, hidden_act=hidden_act, eos_token_id=eos_token_id)
    peer = peer_of(config)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(IDS).long(), output_hidden_states=True)
    ours = run(config, peer)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert relative_error(a, b) <= 1e-5
    assert relative_error(ours.last_hidden_state, theirs.last_hidden_state) <= 1e-5
    assert relative_error(ours.pooled, theirs.pooler_output) <= 1e-5


def test_projection_equals_transformers():
    config = dataclasses.replace(SMALL, hidden_act="gelu", architectures=PROJECTED)
    peer = peer_of(config)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(IDS).long(), output_hidden_states=True)
    ours = run(config, peer)
    assert relative_error(ours.pooled, theirs.text_embeds) <= 1e-5
    assert relative_error(ours.hidden_states[-2], theirs.hidden_states[-2]) <= 1e-5
    assert relative_error(ours.last_hidden_state, theirs.last_hidden_state) <= 1e-5


def test_skip_is_an_earlier_state_after_the_final_norm():
    peer = peer_of(SMALL)
    ours = run(SMALL, peer, skip=1)
    with torch.no_grad():
        states = peer(torch.from_numpy(IDS).long(), output_hidden_states=True).hidden_states
        theirs = peer.final_layer_norm(states[-2])
    assert relative_error(ours.last_hidden_state, theirs) <= 1e-5
    np.testing.assert_array_equal(ours.pooled, run(SMALL, peer).pooled)


def test_hidden_tokens_are_seen_by_no_other():
    peer, mask = peer_of(SMALL), np.ones(IDS.shape, bool)
    mask[0, 2:4] = mask[1, 1] = mask[2, -1] = False
    ours = run(SMALL, peer, mask=mask)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(IDS).long(), attention_mask=torch.from_numpy(mask).long())
    assert relative_error(ours.last_hidden_state, theirs.last_hidden_state) <= 1e-5
    assert relative_error(ours.last_hidden_state, run(SMALL, peer).last_hidden_state) > 1e-3


def test_a_token_does_not_see_later_ones():
    peer = peer_of(SMALL)
    changed = IDS.copy()
    changed[:, 5:] = 50
    before = run(SMALL, peer).last_hidden_state
    after = run(SMALL, peer, changed).last_hidden_state
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-2


def test_end_position_is_the_first_end_token():
    np.testing.assert_array_equal(end_positions(IDS, 98), [4, 2, 8])
    # The legacy value looks for the largest id, which a later, added token can be.
    added = np.where(IDS == 8, 105, IDS)
    np.testing.assert_array_equal(end_positions(added, 2), [2, 2, 8])
    np.testing.assert_array_equal(end_positions(added, 98), [4, 2, 8])


def test_an_id_outside_the_vocabulary_is_not_silently_another_word():
    ids = IDS.copy()
    ids[0, 1] = 99
    output = run(SMALL, peer_of(SMALL), ids).last_hidden_state
    assert np.isnan(output[0]).any() and not np.isnan(output[1:]).any()


def test_remat_changes_neither_values_nor_gradients():
    params = params_of(peer_of(SMALL))

    def loss(params, remat):
        output = TextEncoder(SMALL, remat=remat).apply({"params": params}, jnp.asarray(IDS))
        return jnp.square(output.pooled).mean() + jnp.square(output.last_hidden_state).mean()

    plain = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, False)
    remat = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, remat)


@pytest.mark.parametrize("initializer_range", [0.02, 0.4])
def test_fresh_embeddings_have_the_deviation_of_the_configuration(initializer_range):
    config = dataclasses.replace(
        SMALL, vocab_size=1000, max_position_embeddings=200, initializer_range=initializer_range
    )
    params = jax.jit(TextEncoder(config).init)(jax.random.key(0), IDS)["params"]
    for table in params["embeddings"].values():
        assert np.std(table["embedding"]) == pytest.approx(initializer_range, rel=0.05)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    encoder = TextEncoder(SMALL, dtype=jnp.bfloat16)
    params = jax.jit(encoder.init)(jax.random.key(0), IDS)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    output = jax.jit(encoder.apply)({"params": params}, IDS)
    assert output.last_hidden_state.dtype == output.pooled.dtype == jnp.bfloat16
    exact = jax.jit(TextEncoder(SMALL).apply)({"params": params}, IDS)
    assert relative_error(output.pooled.astype(jnp.float32), exact.pooled) < 0.05


def test_configuration_survives_transformers(tmp_path):
    config = dataclasses.replace(SMALL, architectures=PROJECTED)
    peer_of(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert TextEncoderConfig.from_dict(saved) == config
    assert TextEncoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
    ],
)
def test_configurations_it_cannot_follow_are_refused(change, message):
    with pytest.raises(SdjaxError, match=message):
        TextEncoderConfig.from_dict({**SMALL.to_dict(), **change})


def test_ids_of_a_wrong_shape_are_refused():
    peer = peer_of(SMALL)
    with pytest.raises(SdjaxError, match="at most 20"):
        run(SMALL, peer, np.zeros((1, 21), np.int32))
    with pytest.raises(SdjaxError, match="shape"):
        run(SMALL, peer, np.zeros(9, np.int32))
    with pytest.raises(SdjaxError, match="skip"):
        run(SMALL, peer, skip=3)
    with pytest.raises(SdjaxError, match="ids: expected an array of integers, got float32"):
        run(SMALL, peer, np.zeros((1, 5), np.float32))
