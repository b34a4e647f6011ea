"""Texts and pictures to embeddings and latents, and latents to pixels."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.models.clip import TextEncoder
from sdjax.models.clip_vision import CLIPVision
from sdjax.models.ip_adapter import PLAIN, IPAdapter
from sdjax.models.t2i_adapter import T2IAdapter
from sdjax.models.tiny_vae import TinyVAE
from sdjax.models.vae import VAE
from sdjax.pipeline.compiled.arrays import (
    Coder,
    Prompts,
)
from sdjax.text.chunks import Weighting
from sdjax.text.encode import Embedded, embed_chunks
from sdjax.windows import over_windows

# Pixels that the decoder takes at once; more of them are decoded in turn, to bound its memory.
DECODED_PIXELS = 2**19


def prompts_to_embeddings(
    encoders: tuple[TextEncoder, ...],
    weighting: Weighting | None,
    skip: int,
    params,
    prompts: Prompts,
) -> Embedded:
    """Runs the text encoders; `params` has one tree an encoder, `skip` is the CLIP skip."""

    def kept(x):
        return x * prompts.keep.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)

    return jax.tree.map(kept, embed_chunks(encoders, params, prompts.chunks, weighting, skip))


def pixels_to_moments(
    coder: Coder, params, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the latents of float32[N, H, W, 3], without a scale."""
    vae = coder.vae
    if isinstance(vae, TinyVAE):
        mean = over_windows(lambda part: vae.encode(params, part), images, coder.tiles, "ramp")
        return mean, jnp.zeros_like(mean)
    mean, log_variance = over_windows(
        lambda part: vae.posterior(params, part), images, coder.tiles, "ramp"
    )
    return mean, jnp.exp(0.5 * log_variance)


def pictures_to_features(adapter: T2IAdapter, params, pictures: jax.Array) -> tuple[jax.Array, ...]:
    """A T2I-Adapter's features of pictures [N, H, W, channels] in 0 … 1, one array a level."""
    return adapter.apply({"params": params}, pictures)


def pictures_to_embeddings(encoder: CLIPVision, params, pictures: jax.Array) -> jax.Array:
    """CLIP's embeddings float32 [N, D] of pictures [N, H, W, 3] in its units."""
    return encoder.apply({"params": params}, pictures).pooled.astype(jnp.float32)


def pictures_to_references(
    encoder: CLIPVision, adapter: IPAdapter, params, given: tuple[jax.Array, jax.Array]
):
    """An IP-Adapter's keys and values [N, M, C] for each attention.

    params: the encoder's and the adapter's. given: pictures [N, P, H, W, 3] in CLIP's units, P of
    them shown together, and float32 [N]: 0 where an embedding is to be zero, for no picture.
    """
    pictures, keep = given
    seen = encoder.apply({"params": params[0]}, pictures.reshape(-1, *pictures.shape[2:]))
    if adapter.config.kind == PLAIN:
        embedded = seen.pooled.reshape(*pictures.shape[:2], -1) * keep[:, None, None]
    else:  # of a picture of zeros where there is none
        embedded = seen.hidden_states[-2]
        embedded = embedded.reshape(*pictures.shape[:2], *embedded.shape[1:])
    return adapter.apply({"params": params[1]}, embedded)


def upcast(vae: VAE) -> VAE:
    """The autoencoder as pipelines use it: not in float16 where its `force_upcast` is true.

    Its activations overflow there, SDXL's for one. Parameters may stay float16, as in diffusers.
    """
    if vae.config.force_upcast and np.dtype(vae.dtype) == np.float16:
        return dataclasses.replace(vae, dtype=np.dtype(np.float32))
    return vae


def latents_to_pixels(coder: Coder, params, latents: jax.Array) -> jax.Array:
    """float32[N, h, w, C] in the U-Net's scale to float32[N, H, W, 3], clipped to [-1, 1]; of
    clips [N, F, h, w, C] to [N, F, H, W, 3]."""
    vae, clips = coder.vae, latents.shape[:-3]
    if getattr(vae.config, "temporal", False):
        z = unscaled(vae.config, latents)
        return jnp.clip(jax.lax.map(lambda clip: _clip_to_pixels(coder, params, clip), z), -1, 1)
    z = unscaled(vae.config, latents.reshape(-1, *latents.shape[-3:]))

    def decoded(z):
        return over_windows(lambda part: vae.decode(params, part), z, coder.tiles, "ramp")

    sides = [axis.window for axis in coder.tiles] or z.shape[1:3]
    pixels = math.prod(sides) * vae.config.downsampling**2
    at_once = max(1, DECODED_PIXELS // pixels)
    if len(z) <= at_once:
        images = decoded(z)
    else:
        images = jax.lax.map(lambda one: decoded(one[None])[0], z, batch_size=at_once)
    images = images.reshape(*clips, *images.shape[1:])
    return jnp.clip(images, -1, 1)


def _clip_to_pixels(coder: Coder, params, z: jax.Array) -> jax.Array:
    """Pixels [F, H, W, 3] of a clip's latents [F, h, w, C], some frames at a time, as a decoder that
    looks along the frames has them."""

    def decoded(z):
        def decode(part):
            return coder.vae.decode(params, part, len(part))

        return over_windows(decode, z, coder.tiles, "ramp")

    at_once = min(coder.frames or len(z), len(z))
    whole = len(z) // at_once * at_once
    parts = jax.lax.map(decoded, z[:whole].reshape(-1, at_once, *z.shape[1:]))
    parts = parts.reshape(whole, *parts.shape[2:])
    return parts if whole == len(z) else jnp.concatenate([parts, decoded(z[whole:])])


def unscaled(config, latents):
    """Latents in the U-Net's scale as the autoencoder has them, [N, h, w, C]."""
    shift, scale = _scale(config)
    return latents / scale + shift


def scaled(config, z):
    """Latents of the autoencoder in the U-Net's scale: the inverse of `unscaled`."""
    shift, scale = _scale(config)
    return (z - shift) * scale


def _scale(config):
    """What is taken from an autoencoder's latents, and what the rest is multiplied with."""
    # TAESD has neither, and AutoencoderKL only in some models.
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    shift = (config.shift_factor or 0.0) + (0.0 if mean is None else np.float32(mean))
    return shift, config.scaling_factor / (1.0 if std is None else np.float32(std))
