"""Token ids to what the U-Net attends to."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Embedded(NamedTuple):
    """Embedded prompts: `context` [B, L, D]; `pooled` [B, P] for SDXL, else None."""

    context: jax.Array
    pooled: jax.Array | None = None


def embed(
    encoders: Sequence, params: Sequence, ids: Sequence[jax.Array], skip: int = 0
) -> Embedded:
    """Embeds ids by one text encoder (SD1, SD2) or two (SDXL).

    encoders, params, ids: one entry an encoder; ids are int32[B, L].
    skip: CLIP skip, how many layers earlier than usual the state is taken (static).

    One encoder gives its last state after the final LayerNorm. Two give their states before the
    last layer, without that LayerNorm, side by side, and the second one's pooled projection
    (Podell et al. 2023, arXiv:2307.01952, section 2.1).
    """
    if len(encoders) == 1:
        (encoder,), (weights,), (tokens,) = encoders, params, ids
        return Embedded(encoder.apply({"params": weights}, tokens, skip=skip).last_hidden_state)
    outputs = [
        encoder.apply({"params": weights}, tokens)
        for encoder, weights, tokens in zip(encoders, params, ids, strict=True)
    ]
    states = [output.hidden_states[-2 - skip] for output in outputs]
    return Embedded(jnp.concatenate(states, axis=-1), outputs[-1].pooled)
