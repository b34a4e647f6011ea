"""Texts to the vectors of a model of sound, and its latents to waveforms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax.models.clap import ClapText
from sdjax.models.hifigan import Vocoder
from sdjax.models.vae import VAE
from sdjax.pipeline.compiled.coding import unscaled
from sdjax.text.encode import Embedded

SMALLEST = 1e-12  # of a vector's length that is divided by, as in PyTorch


class Heard(NamedTuple):
    """What a model of sound makes."""

    sound: jax.Array
    """float32[N, samples] in [-1, 1]."""
    mel: jax.Array
    """float32[N, frames, bins]: the log-mel spectrogram that it is of."""


def ids_to_vectors(encoder: ClapText, params, ids: jax.Array) -> Embedded:
    """Vectors of length 1, as `pooled`, of int32[N, L]."""
    pooled = encoder.apply({"params": params}, ids).pooled.astype(jnp.float32)
    length = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    return Embedded(None, pooled / jnp.maximum(length, SMALLEST))


def latents_to_sound(vae: VAE, vocoder: Vocoder, params, latents: jax.Array) -> Heard:
    """Sound of latents [N, h, w, C] in the U-Net's scale; params: {"vae", "vocoder"}."""
    mel = vae.decode(params["vae"], unscaled(vae.config, latents))[..., 0]
    return Heard(vocoder.apply({"params": params["vocoder"]}, mel), mel)
