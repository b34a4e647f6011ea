"""Embeddings of weighted and long prompts against formulas over transformers' own networks."""

import math

import jax
import numpy as np
import pytest

from sdjax.models.clip import TextEncoder, TextEncoderConfig
from sdjax.text.chunks import chunked
from sdjax.text.encode import embed, embed_chunks
from sdjax.text.vocabulary import train_tokenizer

torch = pytest.importorskip("torch")  # it is lent by the suite, not by the oldest versions' one
transformers = pytest.importorskip("transformers")

from tests.models.peers import params_of, randomised, relative_error  # noqa: E402

LENGTH = 12
CAPTIONS = ["a large red circle, a small blue square", "a green cat on a mat"]
TEXTS = [
    "a (red:1.4) circle",
    "a (red:0.4) circle [on] a (mat:0), large red circle, a small blue square",
    "a green cat",
    "(blue:1.2) BREAK a (cat:0.7)",
]


def encoder(width, projected, tokenizer, seed):
    """One of ours with its parameters, and transformers' network of the same."""
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    config = TextEncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        architectures=(kind,),
    )
    torch.manual_seed(seed)
    peer = getattr(transformers, kind)(transformers.CLIPTextConfig(**config.to_dict()))
    peer = randomised(peer, seed)
    return TextEncoder(config), params_of(peer), peer


@pytest.fixture(scope="module")
def tokenizers():
    first = train_tokenizer(CAPTIONS * 3, vocab_size=560, max_length=LENGTH)
    second = type(first)(first.vocabulary, first.merges, LENGTH, pad_token="!")
    return first, second


@pytest.fixture(scope="module")
def kinds(tokenizers):
    """SD1's one encoder, and SDXL's two."""
    one = encoder(16, False, tokenizers[0], 0)
    return {"sd1": [one], "sdxl": [one, encoder(24, True, tokenizers[1], 1)]}


def run(kind, chunks, weighting, **options):
    networks, params, _ = zip(*kind, strict=True)

    def function(params, chunks):
        return embed_chunks(networks, params, chunks, weighting, **options)

    return jax.jit(function)(params, chunks)


def states(peer, ids, alone, mask=None):
    """What the U-Net gets from one row of ids, in float64, and the pooled state."""
    ids = torch.from_numpy(np.array(ids)[None]).long()
    mask = None if mask is None else torch.from_numpy(np.array(mask)[None]).long()
    with torch.no_grad():
        output = peer(ids, attention_mask=mask, output_hidden_states=True)
    z = output.last_hidden_state if alone else output.hidden_states[-2]
    pooled = None if alone else getattr(output, "text_embeds", None)
    return z[0].double().numpy(), pooled


def a1111(z, weights):
    scaled = z * weights[:, None]
    return scaled * z.mean() / scaled.mean()


def formula(peer, chunks, n, weighting, alone):
    """The context of one prompt from one encoder, [chunks·L, D]."""
    empty, _ = states(peer, chunks.empty[n], alone)
    rows = list(zip(chunks.ids[n], chunks.weights[n].astype(float), strict=True))

    def moved(masks):
        return np.concatenate([
            empty + weights[:, None] * (states(peer, ids, alone, mask)[0] - empty)
            for (ids, weights), mask in zip(rows, masks, strict=True)
        ])  # fmt: skip

    if weighting == "a1111":
        return np.concatenate([a1111(states(peer, ids, alone)[0], w) for ids, w in rows])
    total, shares = moved(np.ones_like(chunks.ids[n])), 1.0
    if weighting == "compel":
        for k in range(1, chunks.lowered[n].max() + 1):
            own = chunks.lowered[n] == k
            weight = max(1e-5, float(chunks.weights[n][own][0]))
            share = math.tan((1 - weight) * math.pi / 2)
            total, shares = total + share * moved(~own), shares + share
    return total / shares


@pytest.mark.parametrize("weighting", ["a1111", "comfy", "compel"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_weighted_and_long_prompts(kind, weighting, kinds, tokenizers):
    kind = kinds[kind]
    chunks = chunked([TEXTS] * len(kind), tokenizers[: len(kind)], weighting)
    assert chunks[0].ids.shape == (4, 2, LENGTH) and chunks[0].lowered[1].max() == 3
    ours = run(kind, chunks, weighting)
    assert ours.context.shape == (4, 2 * LENGTH, 16 if len(kind) == 1 else 40)
    for n in range(len(TEXTS)):
        theirs = [
            formula(peer, own, n, weighting, len(kind) == 1)
            for (_, _, peer), own in zip(kind, chunks, strict=True)
        ]
        assert relative_error(ours.context[n], np.concatenate(theirs, -1)) < 2e-5, TEXTS[n]
        if len(kind) == 2:
            pooled = states(kind[1][2], chunks[1].ids[n, 0], False)[1]
            assert relative_error(ours.pooled[n], pooled[0]) < 1e-5
    assert len(kind) == 2 or ours.pooled is None


@pytest.mark.parametrize(
    ("kind", "weighting"), [("sd1", "a1111"), ("sdxl", "comfy"), ("sdxl", "compel")]
)
def test_without_weights_it_is_the_embedding_itself(kind, weighting, kinds, tokenizers):
    kind = kinds[kind]
    chunks = chunked([["a red circle", ""]] * len(kind), tokenizers[: len(kind)], weighting)
    ours = run(kind, chunks, weighting)
    networks, params, _ = zip(*kind, strict=True)
    plain = jax.jit(lambda params, ids: embed(networks, params, ids))(
        params, [own.ids[:, 0] for own in chunks]
    )
    np.testing.assert_allclose(ours.context, plain.context, atol=1e-6)
    assert (ours.pooled is None) == (plain.pooled is None)
    if plain.pooled is not None:
        np.testing.assert_allclose(ours.pooled, plain.pooled, atol=1e-6)


def test_a_prompt_does_not_depend_on_its_batch(kinds, tokenizers):
    together = chunked([TEXTS], tokenizers[:1])
    alone = chunked([TEXTS[:1]], tokenizers[:1])
    whole = run(kinds["sd1"], together, "a1111").context[0]
    single = run(kinds["sd1"], alone, "a1111").context[0]
    np.testing.assert_allclose(whole, np.tile(single, (2, 1)), atol=1e-5)


def test_weights_compile_nothing_and_the_skip_is_an_earlier_state(kinds, tokenizers):
    ((network, params, _),) = kinds["sd1"]
    traces = []

    def function(params, chunks):
        traces.append(1)
        return embed_chunks([network], [params], chunks, "compel", skip=1).context

    function = jax.jit(function)
    for text in ("a red (cat:1.5)", "[a] (cat:0.3) on (mat:0.2)", "a cat"):
        chunks = chunked([[text]], tokenizers[:1], "compel")
        last = function(params, chunks)
    assert len(traces) == 1
    earlier = embed([network], [params], [chunks[0].ids[:, 0]], skip=1).context
    np.testing.assert_allclose(last, earlier, atol=1e-6)
