"""The compiled programs of a generation: prompts to embeddings, noise to latents to pixels.

Each is pmapped over the local devices. Networks and shapes are static; parameters are arguments;
everything a request brings (prompt, seed, steps, sampler, guidance) is traced.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import diffusion, parallel
from sdjax.models.clip import TextEncoder
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.models.unet import UNet
from sdjax.models.vae import VAE
from sdjax.text.encode import Embedded, embed

# Pixels that the decoder takes at once; more of them are decoded in turn, to bound its memory.
DECODED_PIXELS = 2**19


class Place(NamedTuple):
    """Where the images of a batch are made."""

    rows: np.ndarray
    """int[devices, n]: the image at each place of each device; the last fills up."""
    across: bool
    """Whether a guided image takes two devices: an even one for the negative prompt, the next
    for the prompt. Else both halves are one batch on the image's device."""


def place(count: int, guided: bool) -> Place:
    """Lays `count` images out over the local devices, with the fewest evaluations in a row."""
    devices = jax.local_device_count()
    across = guided and devices % 2 == 0 and -(-2 * count // devices) < 2 * -(-count // devices)
    groups = devices // 2 if across else devices
    rows = np.minimum(np.arange(groups * -(-count // groups)), count - 1).reshape(groups, -1)
    return Place(np.repeat(rows, 2, axis=0) if across else rows, across)


def joined(mapped, place: Place, count: int) -> np.ndarray:
    """The images of an array [devices, n, …], in their order, as NumPy [count, …]."""
    mapped = np.asarray(mapped)[:: 2 if place.across else 1]
    return mapped.reshape(-1, *mapped.shape[2:])[:count]


class Prompts(NamedTuple):
    """Tokenised prompts; every array's first axis is the image."""

    ids: tuple[jax.Array, ...]
    """int32[N, L] for each text encoder."""
    keep: jax.Array
    """float32[N]: 0 where the embedding is to be zero, as SDXL has it without negative prompt."""


class Images(NamedTuple):
    """What each image of a batch has of its own; every array's first axis is the image.

    A condition that comes with an image (a mask, a control picture) is one more field.
    """

    keys: jax.Array
    """uint32[N, 2], the data of a random key for samplers that add noise."""
    noise: jax.Array | None
    """float32[N, rows, h, w, C]: what the table's rows add, where it does not come of `keys`.

    Deterministic samplers have it as well, zeros, so that they run the same program.
    """
    prompt: Embedded
    """Of the negative prompt on every other device where a guided image takes two."""
    negative: Embedded | None
    """None where guidance is off or goes across devices."""
    time_ids: jax.Array | None
    """float32[N, 6] of SDXL: original height, width; crop top, left; target height, width."""


class Settings(NamedTuple):
    """What all images of a batch share."""

    table: diffusion.Table
    guidance_scale: jax.Array
    guidance_rescale: jax.Array


def prompts_to_embeddings(
    encoders: tuple[TextEncoder, ...], skip: int, params, prompts: Prompts
) -> Embedded:
    """Runs the text encoders; `params` has one tree an encoder, `skip` is the CLIP skip."""

    def kept(x):
        return x * prompts.keep.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)

    return jax.tree.map(kept, embed(encoders, params, prompts.ids, skip))


def noise_to_latents(
    unet: UNet,
    across: bool,
    params,
    settings: Settings,
    images: Images,
    latents: diffusion.Underway,
) -> diffusion.Underway:
    """Runs the sampler's table on latents [N, h, w, C], which end in the U-Net's scale.

    across: see `Place`. latents: from `diffusion.begin`, or where an earlier part of the table left
    them.
    """
    count, beside = latents.x.shape[0], images.negative is not None
    prompt, time_ids = images.prompt, images.time_ids
    if beside:
        # One evaluation of twice the batch costs less than two evaluations.
        prompt = jax.tree.map(lambda *both: jnp.concatenate(both), images.negative, prompt)
        time_ids = None if time_ids is None else jnp.concatenate([time_ids, time_ids])
    added = distilled = None
    if time_ids is not None:
        added = {"text_embeds": prompt.pooled, "time_ids": time_ids}
    if unet.config.time_cond_proj_dim is not None:
        # A network distilled with guidance takes its scale as an input (arXiv 2210.03142).
        distilled = sinusoidal_embedding(
            jnp.full(count, 1000 * (settings.guidance_scale - 1)),
            unet.config.time_cond_proj_dim,
            cosine_first=False,
            frequency_shift=1,
        )

    def denoise(x, t):
        x = jnp.concatenate([x, x]) if beside else x
        prediction = unet.apply({"params": params}, x, t, prompt.context, added, distilled)
        if across:
            everywhere = jax.lax.all_gather(prediction, parallel.AXIS)
            even = jax.lax.axis_index(parallel.AXIS) // 2 * 2
            unconditional, conditional = everywhere[even], everywhere[even + 1]
        elif beside:
            unconditional, conditional = prediction[:count], prediction[count:]
        else:
            return prediction
        return diffusion.classifier_free_guidance(
            conditional, unconditional, settings.guidance_scale, settings.guidance_rescale
        )

    noise = None if images.noise is None else jnp.swapaxes(images.noise, 0, 1)
    return diffusion.sample(denoise, settings.table, latents, images.keys, noise=noise)


def upcast(vae: VAE) -> VAE:
    """The autoencoder as pipelines use it: not in float16 where its `force_upcast` is true.

    Its activations overflow there, SDXL's for one. Parameters may stay float16, as in diffusers.
    """
    if vae.config.force_upcast and np.dtype(vae.dtype) == np.float16:
        return dataclasses.replace(vae, dtype=np.dtype(np.float32))
    return vae


def latents_to_pixels(vae: VAE, params, latents: jax.Array) -> jax.Array:
    """float32[N, h, w, C] in the U-Net's scale to float32[N, H, W, 3], clipped to [-1, 1]."""
    config = vae.config
    # TAESD has neither, and AutoencoderKL only in some models.
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    z = latents if std is None else latents * jnp.array(std)
    z = z / config.scaling_factor + (config.shift_factor or 0.0)
    z = z if mean is None else z + jnp.array(mean)
    pixels = z.shape[1] * z.shape[2] * config.downsampling**2
    at_once = max(1, DECODED_PIXELS // pixels)
    if len(z) <= at_once:
        images = vae.decode(params, z)
    else:
        images = jax.lax.map(
            lambda one: vae.decode(params, one[None])[0], z, batch_size=at_once
        )
    return jnp.clip(images, -1, 1)


@functools.cache
def compiled(function, *static, in_axes: tuple[int | None, ...]):
    """A function of this module with its static arguments given, mapped over the local devices.

    in_axes: for each other argument, 0 where it is split over the devices and None where it is
    the same on all. The program is kept for the life of the process.
    """
    mapped = functools.partial(function, *static)
    return jax.pmap(mapped, axis_name=parallel.AXIS, in_axes=in_axes)
