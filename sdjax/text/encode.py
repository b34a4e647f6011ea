"""Token ids to what the U-Net attends to."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax.text.chunks import Chunks, Weighting, check_weighting

# What compel takes a smaller weight for: at 0 the share of the prompt without it is infinite.
SMALLEST = 1e-5


class Embedded(NamedTuple):
    """Embedded prompts: `context` [B, L, D]; `pooled` [B, P] for SDXL, else None."""

    context: jax.Array
    pooled: jax.Array | None = None


def embed(
    encoders: Sequence, params: Sequence, ids: Sequence[jax.Array], skip: int = 0
) -> Embedded:
    """Embeds ids by one text encoder (SD1, SD2, SDXL's refiner) or two (SDXL).

    encoders, params, ids: one entry an encoder; ids are int32[B, L].
    skip: CLIP skip, how many layers earlier than usual the state is taken (static).

    An encoder without a projection, alone, gives its last state after the final LayerNorm. Two, or
    the refiner's with its projection, give their states before the last layer, without that
    LayerNorm, side by side, and the last one's pooled projection (Podell et al. 2023,
    arXiv:2307.01952, section 2.1).
    """
    encodes = _encodes(encoders, params, skip)
    outputs = [encode(tokens) for encode, tokens in zip(encodes, ids, strict=True)]
    return _together([state for state, _ in outputs], outputs[-1][1])


def embed_chunks(
    encoders: Sequence,
    params: Sequence,
    chunks: Sequence[Chunks],
    weighting: Weighting | None = "a1111",
    skip: int = 0,
) -> Embedded:
    """Embeds weighted prompts in chunks, as `sdjax.text.chunks.chunked` gives them.

    Each chunk is embedded by itself and weighted; their contexts follow one another,
    [N, chunks·L, D]. `pooled` is the first chunk's, without weights. Weights and their number are
    traced: N and the chunks choose the program, with `weighting` and `skip`, which are static.

    weighting, for the state z of a token and the state e at its place in the empty prompt:
      "a1111": weight·z, then all of a chunk times the number that restores its mean.
      "comfy": e + weight·(z − e).
      "compel": the same; and where weights are below 1, the weighted mean of that and, for each
        piece of weight w below 1, of the prompt with this piece hidden from all other tokens:
        1 to tan((1 − w)·π/2).
      None: weights are not looked at.

    A chunk without weights is what `embed` gives, bit for bit.
    """
    check_weighting(weighting)
    states, pooled = [], None
    for encode, own in zip(_encodes(encoders, params, skip), chunks, strict=True):
        z, pooled = _chunk_states(encode, own, weighting)
        states.append(z)
    return _together(states, pooled)


Encode = Callable[..., tuple[jax.Array, jax.Array | None]]


def _encodes(encoders: Sequence, params: Sequence, skip: int) -> list[Encode]:
    """For each encoder a function of (ids [B, L], mask [B, L] or None).

    It gives (the state that the U-Net takes, [B, L, D]; the pooled one, [B, P] or None).
    """

    plain = len(encoders) == 1 and not encoders[0].config.projected

    def encode(encoder, weights, ids, mask=None):
        if plain:
            output = encoder.apply({"params": weights}, ids, skip=skip, mask=mask)
            return output.last_hidden_state, None
        output = encoder.apply({"params": weights}, ids, mask=mask)
        return output.hidden_states[-2 - skip], output.pooled

    return [
        functools.partial(encode, encoder, weights)
        for encoder, weights in zip(encoders, params, strict=True)
    ]


def _together(states: Sequence[jax.Array], pooled: jax.Array | None) -> Embedded:
    return Embedded(states[0] if len(states) == 1 else jnp.concatenate(states, axis=-1), pooled)


def _chunk_states(
    encode: Encode, chunks: Chunks, weighting: Weighting | None
) -> tuple[jax.Array, jax.Array | None]:
    """One encoder's (weighted states [N, chunks·L, D], pooled states of the first chunks)."""
    count, number, length = chunks.ids.shape

    def run(mask=None):
        mask = None if mask is None else mask.reshape(-1, length)
        z, pooled = encode(chunks.ids.reshape(-1, length), mask=mask)
        return z.reshape(count, number, length, -1), pooled

    z, pooled = run()
    pooled = None if pooled is None else pooled.reshape(count, number, -1)[:, 0]
    dtype = z.dtype
    if weighting == "a1111":
        z = _mean_restored(z, chunks.weights)
    elif weighting is not None:
        # Alone: in a batch of another size, states need not be those of `embed` to the last bit.
        empty = encode(chunks.empty[:1])[0]

        def apart(z):
            return _from_empty(z, empty, chunks.weights)

        lowered = weighting == "compel"
        z = _lowered(apart(z), lambda mask: apart(run(mask)[0]), chunks) if lowered else apart(z)
    return z.astype(dtype).reshape(count, number * length, -1), pooled


def _mean_restored(z: jax.Array, weights: jax.Array) -> jax.Array:
    """z [N, chunks, L, D] times the weights, each chunk's mean kept as it was."""
    z, axes = z.astype(jnp.float32), (2, 3)
    scaled = z * weights[..., None]
    old, new = (x.mean(axes, keepdims=True) for x in (z, scaled))
    plain = (weights == 1).all(2)[..., None, None]
    return jnp.where(plain, z, scaled * (old / jnp.where(new == 0, 1, new)))


def _from_empty(z: jax.Array, empty: jax.Array, weights: jax.Array) -> jax.Array:
    """z [N, chunks, L, D] moved by its weights from the empty prompt's states [1, L, D]."""
    z, empty, weights = z.astype(jnp.float32), empty.astype(jnp.float32), weights[..., None]
    return jnp.where(weights == 1, z, empty + weights * (z - empty))


def _lowered(
    z: jax.Array, without: Callable[[jax.Array], jax.Array], chunks: Chunks
) -> jax.Array:
    """The mean of z and the states with each lowered piece hidden, as much as it is lowered.

    without: function of a mask [N, chunks, L] that gives the states where the tokens outside it
    are hidden.
    """

    def add(k, carry):
        total, shares = carry
        own = chunks.lowered == k
        weight = jnp.where(own, chunks.weights, 1).min((1, 2))
        # 1/tan(w·π/2) is tan((1 − w)·π/2), and exact where w is small.
        share = 1 / jnp.tan(jnp.maximum(weight, SMALLEST) * (jnp.pi / 2))
        share = jnp.where(own.any((1, 2)), share, 0)[:, None, None, None]
        return total + share * without(~own), shares + share

    start = z, jnp.ones((len(z), 1, 1, 1), jnp.float32)
    total, shares = jax.lax.fori_loop(1, chunks.lowered.max() + 1, add, start)
    return total / shares
