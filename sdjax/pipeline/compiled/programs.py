"""The compiled programs of a generation: texts and pictures to embeddings, noise to latents to
pixels.

Each is mapped over the devices of a placement. Networks and shapes are static; parameters are arguments;
everything a request brings (prompt, picture, mask, seed, steps, sampler, guidance) is traced.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import diffusion, parallel
from sdjax.diffusion.guidance import per_item, rescaled
from sdjax.models.clip import TextEncoder
from sdjax.models.clip_vision import CLIPVision
from sdjax.models.controlnet import ControlNet
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.models.ip_adapter import PLAIN, IPAdapter, placed
from sdjax.models.t2i_adapter import T2IAdapter
from sdjax.models.tiny_vae import TinyVAE
from sdjax.models.unet import UNet
from sdjax.models.vae import VAE
from sdjax.text.chunks import Chunks, Weighting
from sdjax.text.encode import Embedded, embed_chunks
from sdjax.windows import Windows, over_windows

# Pixels that the decoder takes at once; more of them are decoded in turn, to bound its memory.
DECODED_PIXELS = 2**19


class Place(NamedTuple):
    """Where the images of a batch are made."""

    rows: np.ndarray
    """int[devices, n]: the image at each place of each device; the last fills up."""
    across: bool
    """Whether a guided image takes two devices: an even one for the negative prompt, the next
    for the prompt. Else all branches are one batch on the image's device."""
    on: parallel.Copies | parallel.Sharded = parallel.COPIES
    """What a device is: one with a copy of the parameters, or several that share one."""


def place(count: int, branches: int, on=parallel.COPIES) -> Place:
    """Lays `count` images out over the devices of `on`, with the fewest evaluations in a row.

    branches: predictions that an evaluation of an image takes; 2 with guidance.
    """
    devices = on.groups
    pairs = branches == 2 and devices % 2 == 0
    across = pairs and -(-2 * count // devices) < 2 * -(-count // devices)
    groups = devices // 2 if across else devices
    rows = np.minimum(np.arange(groups * -(-count // groups)), count - 1).reshape(groups, -1)
    return Place(np.repeat(rows, 2, axis=0) if across else rows, across, on)


def joined(mapped, place: Place, count: int) -> np.ndarray:
    """The images of an array [devices, n, …], in their order, as NumPy [count, …]."""
    mapped = np.asarray(mapped)[:: 2 if place.across else 1]
    return mapped.reshape(-1, *mapped.shape[2:])[:count]


class Prompts(NamedTuple):
    """Tokenised prompts; every array's first axis is the prompt."""

    chunks: tuple[Chunks, ...]
    """For each text encoder."""
    keep: jax.Array
    """float32[N]: 0 where the embedding is to be zero, as SDXL has it without negative prompt."""


class Kept(NamedTuple):
    """What of an image is known; every array's first axis is the image."""

    mask: jax.Array
    """float32[N, h, w, 1]: 1 where the image is painted, 0 where it is kept."""
    x_0: jax.Array
    """float32[N, h, w, C] in the U-Net's scale."""
    noise: jax.Array
    """float32[N, h, w, C]: what is added to x_0 on the way."""


class Control(NamedTuple):
    """A picture for a ControlNet."""

    picture: jax.Array
    """float32[N, 1, H, W, channels] in 0 … 1."""
    scale: jax.Array
    """float32[N, B, E]: for each branch and evaluation."""
    layers: jax.Array
    """float32[N, 1, residuals]: of the skips in their order, then the middle."""


class Features(NamedTuple):
    """What a T2I-Adapter has made of a picture."""

    levels: tuple[jax.Array, ...]
    """float32[N, 1, h, w, C]: as the U-Net takes them, scaled."""
    scale: jax.Array
    """float32[N, B, E]."""


class Reference(NamedTuple):
    """What an IP-Adapter has made of pictures."""

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    """Keys and values [N, B, M, C] for each of the U-Net's attentions to the context."""
    scale: jax.Array
    """float32[N, B, E]."""


class Branches(NamedTuple):
    """What each of the B predictions of an image is for; every array begins with [N, B], or with
    [N, 1] where it is the same for all of an image.

    An evaluation of the table evaluates the network once for each branch. With guidance they are
    the negative prompt and the prompt; there is one branch without.
    """

    prompt: Embedded
    """Leaves [N, B, T, …]: T texts, one at a time."""
    which: jax.Array
    """int32[N, B, E]: which of the T texts, at each evaluation."""
    time_ids: jax.Array | None
    """float32[N, B, 6] of SDXL (original height, width; crop top, left; target height, width), or
    [N, B, 5] of its refiner (original height, width; crop top, left; aesthetic score)."""
    channels: jax.Array | None
    """float32[N, B, h, w, K]: beside x at the network's input."""
    controls: tuple[Control, ...] = ()
    features: tuple[Features, ...] = ()
    references: tuple[Reference, ...] = ()


class Images(NamedTuple):
    """What each image of a batch has of its own; every array's first axis is the image."""

    keys: jax.Array
    """uint32[N, 2], the data of a random key for samplers that add noise."""
    noise: jax.Array | None
    """float32[N, rows, h, w, C]: what the table's rows add, where it does not come of `keys`.

    Deterministic samplers have it as well, zeros, so that they run the same program.
    """
    branches: Branches
    """Of every other branch on each device where a guided image takes two."""
    weights: jax.Array | None
    """float32[N, B - 1, h or 1, w or 1, 1]: what the difference of each later branch to the first
    counts. None where there is one branch."""
    guidance_scale: jax.Array
    """float32[N]: what a network distilled with guidance is told."""
    labels: jax.Array | None
    """int32[N]: of a network that takes labels."""
    kept: Kept | None


class Seen(NamedTuple):
    """What the networks see of a window of the latents; every array begins with [N · B]."""

    x: jax.Array
    channels: jax.Array | None
    pictures: tuple[jax.Array, ...]
    """Of the ControlNets."""
    features: tuple[jax.Array, ...]
    """Of the T2I-Adapters, added up."""


class Settings(NamedTuple):
    """How a batch is sampled."""

    table: diffusion.Table
    """A table for each image: every array's first axis is the image."""
    guidance_rescale: jax.Array
    """[]."""


SPLIT = Settings(0, None)
"""The axes of `Settings` that are split over the devices."""


class Inputs(NamedTuple):
    """All that a generation takes beside networks and parameters."""

    latents: jax.Array
    """float32[N, h, w, C]: unit-variance noise, or a noised picture in its scale."""
    settings: Settings
    images: Images

    @property
    def prompt(self) -> Embedded:
        """Embeddings: context [N, B, T, L, D] and pooled [N, B, T, D] or None.

        B is 2 with guidance, the negative prompt first; T is how many texts follow one another.
        """
        return self.images.branches.prompt

    def with_prompt(self, prompt: Embedded) -> "Inputs":
        """The same with other embeddings of these shapes."""
        branches = self.images.branches._replace(prompt=prompt)
        return self._replace(images=self.images._replace(branches=branches))


class Networks(NamedTuple):
    """The networks that a sample takes; hashable, so that they can be static."""

    unet: UNet
    controls: tuple[ControlNet, ...] = ()
    windows: tuple[Windows, ...] = ()
    """Over the axes of the latents, where the networks see a part of them at a time."""


class Coder(NamedTuple):
    """The autoencoder, and the tiles of the latents that it takes one at a time."""

    vae: VAE
    tiles: tuple[Windows, ...] = ()


def on_devices(images: Images, place: Place) -> Images:
    """Arrays [N, …] laid out as [devices, n, …], each device with the branches that it evaluates."""
    images = jax.tree.map(lambda array: array[place.rows], images)
    if not place.across:
        return images
    own = np.arange(len(place.rows)) % 2

    def halved(array):
        if array.shape[2] == 1:
            return array
        return np.stack([array[device][:, [branch]] for device, branch in enumerate(own)])

    return images._replace(branches=jax.tree.map(halved, images.branches))


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


def begin(table: diffusion.Table, x: jax.Array) -> diffusion.Underway:
    """What `noise_to_latents` goes on from, of unit-variance x [N, h, w, C]."""
    return diffusion.begin(table, x, jnp.zeros(len(x), jnp.int32))


def noise_to_latents(
    networks: Networks,
    across: bool,
    params,
    settings: Settings,
    images: Images,
    latents: diffusion.Underway,
    remat: bool = False,
) -> diffusion.Underway:
    """Runs the sampler's table on latents [N, h, w, C], which end in the U-Net's scale.

    across: see `Place`. remat: whether a gradient computes the predictions of each evaluation anew
    and keeps only x. params: {"unet": a tree, "controls": a tuple of trees}. latents: from
    `begin`, or where an earlier part of the table left them.
    """
    count, branches = images.branches.which.shape[:2]
    denoise = functools.partial(_predictions, networks, params, images)
    if remat:
        denoise = jax.checkpoint(denoise)

    def guided(x, t, evaluation):
        predictions = denoise(x, t, evaluation).reshape(count, branches, *x.shape[1:])
        if across:
            everywhere = jax.lax.all_gather(predictions[:, 0], parallel.AXIS)
            even = jax.lax.axis_index(parallel.AXIS) // 2 * 2
            predictions = jnp.stack([everywhere[even], everywhere[even + 1]], axis=1)
        if images.weights is None:
            return predictions[:, 0], evaluation + 1
        combined = _combined(predictions, images.weights, settings.guidance_rescale)
        return combined, evaluation + 1

    def keep(x, level):
        mask, x_0, noise = images.kept
        signal, rest = (per_item(level[..., i], x) for i in (0, 1))
        return (1 - mask) * (signal * x_0 + rest * noise) + mask * x

    noise = None if images.noise is None else jnp.swapaxes(images.noise, 0, 1)
    return diffusion.sample(
        guided,
        settings.table,
        latents,
        images.keys,
        noise=noise,
        keep=None if images.kept is None else keep,
        axis_name=parallel.AXIS if across else None,
    )


def _predictions(networks: Networks, params, images: Images, x, t, evaluation) -> jax.Array:
    """The network's predictions [N · B, h, w, C] for x [N, h, w, C]: each branch of each image."""
    prompt, which, time_ids, channels, controls, features, references = images.branches
    count, branches = which.shape[:2]

    def flat(array):
        array = jnp.broadcast_to(array, (count, branches, *array.shape[2:]))
        return array.reshape(count * branches, *array.shape[2:])

    def repeated(array):
        return jnp.repeat(array, branches, axis=0)

    def current_of(values):
        return jnp.take_along_axis(values, evaluation[:, None, None], axis=2).reshape(-1)

    t, text = repeated(jnp.broadcast_to(t, count)), current_of(which)

    def current(leaf):
        leaf = flat(leaf)
        return leaf[:, 0] if leaf.shape[1] == 1 else leaf[jnp.arange(len(text)), text]

    context, pooled = jax.tree.map(current, prompt)
    added = distilled = None
    if time_ids is not None:
        added = {"text_embeds": pooled, "time_ids": flat(time_ids)}
    if networks.unet.config.time_cond_proj_dim is not None:
        # A network distilled with guidance takes its scale as an input (arXiv 2210.03142).
        distilled = sinusoidal_embedding(
            repeated(1000 * (images.guidance_scale - 1)),
            networks.unet.config.time_cond_proj_dim,
            cosine_first=False,
            frequency_shift=1,
        )
    labels = None if images.labels is None else repeated(images.labels)
    shown: tuple[jax.Array, ...] = ()
    for one in features:
        scale = current_of(one.scale).reshape(-1, *(1,) * (x.ndim - 1))
        own = tuple(scale * flat(level) for level in one.levels)
        shown = tuple(itertools.starmap(jnp.add, itertools.zip_longest(shown, own, fillvalue=0)))
    variables, looked_at = {"params": params["unet"]}, {}
    if references:
        layers = [jax.tree.map(flat, one.layers) for one in references]
        counts = [current_of(one.scale) for one in references]
        looked_at = {"references": placed(networks.unet.config, layers, counts)}
    scales = [current_of(control.scale)[:, None] * flat(control.layers) for control in controls]

    def seen(places: Seen):
        """The predictions for a window of the latents."""
        x, residuals = places.x, None
        frames = x.shape[1:-3]  # none of a picture

        def folded(array):
            return array.reshape(-1, *array.shape[1 + len(frames) :])

        def each(array):
            return jnp.repeat(array, frames[0], axis=0) if frames else array
        for network, weights, scale, picture in zip(
            networks.controls, params["controls"], scales, places.pictures, strict=True
        ):
            given = folded(x), *jax.tree.map(each, (t, context)), folded(picture)
            own = network.apply({"params": weights}, *given, jax.tree.map(each, added))
            *down, middle = (
                residual * each(scale[:, i]).reshape(-1, 1, 1, 1)
                for i, residual in enumerate((*own[0], own[1]))
            )
            own = tuple(down), middle
            residuals = own if residuals is None else jax.tree.map(jnp.add, residuals, own)
        if places.channels is not None:
            x = jnp.concatenate([x, places.channels], axis=-1)
        known = {**variables, **jax.tree.map(each, looked_at)}
        features = jax.tree.map(folded, places.features)
        return networks.unet.apply(
            known, x, t, context, added, distilled, labels, residuals, features
        )

    places = Seen(
        repeated(x),
        None if channels is None else flat(channels),
        tuple(flat(control.picture) for control in controls),
        shown,
    )
    return over_windows(seen, places, networks.windows, "even")


def _combined(predictions, weights, rescale) -> jax.Array:
    """Guidance over the branches of predictions [N, B, h, w, C]: [N, h, w, C]."""
    first, others = predictions[:, 0], predictions[:, 1:]
    guided = first + (weights * (others - first[:, None])).sum(axis=1)
    if others.shape[1] == 1:
        conditional = others[:, 0]
    else:
        total = weights.sum(axis=1, keepdims=True)
        shares = weights / jnp.where(total == 0, 1, total)
        conditional = first + (shares * (others - first[:, None])).sum(axis=1)
    return rescaled(guided, conditional, rescale)


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


@functools.cache
def compiled(function, *static, in_axes: tuple, on=parallel.COPIES):
    """A function of this module with its static arguments given, mapped over the devices of `on`.

    in_axes: for each other argument, or each of its fields, 0 where it is split over the devices
    and None where it is the same on all. The program is kept for the life of the process.
    """
    mapped = functools.partial(function, *static)
    return on.map(mapped, in_axes)
