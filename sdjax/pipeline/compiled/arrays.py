"""What the compiled programs take: named arrays, and networks with what they see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax import diffusion
from sdjax.models.controlnet import ControlNet
from sdjax.models.unet import UNet
from sdjax.models.vae import VAE
from sdjax.text.chunks import Chunks
from sdjax.text.encode import Embedded
from sdjax.windows import Windows


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
    [N, B, 5] of its refiner (original height, width; crop top, left; aesthetic score), or what else
    a network is told in numbers."""
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
    """float32[N, B - 1, h or 1, w or 1, 1], of clips with their frames, or 1, before h: what the
    difference of each later branch to the first counts. None where there is one branch."""
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


class Deep(NamedTuple):
    """What the U-Net keeps of one evaluation for others, beside the size of latents; hashable."""

    branches: int
    """Predictions that a device makes for an image."""
    channels: int
    dtype: str

    @classmethod
    def of(cls, unet: UNet, inputs: "Inputs") -> "Deep | None":
        """That of a generation; None where nothing is kept. inputs: without an axis of devices."""
        if inputs.settings.reuse_every is None:
            return None
        branches = inputs.images.branches.which.shape[1]
        return cls(branches, unet.config.block_out_channels[0], jnp.dtype(unet.dtype).name)


class Settings(NamedTuple):
    """How a batch is sampled."""

    table: diffusion.Table
    """A table for each image: every array's first axis is the image."""
    guidance_rescale: jax.Array
    """[]."""
    reuse_every: jax.Array | None = None
    """int32[]: how many evaluations share the U-Net's deep features; None for each its own."""


SPLIT = Settings(0, None, None)
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
    """The autoencoder, and the tiles of the latents that it takes one at a time, or of clips the
    frames, None for all."""

    vae: VAE
    tiles: tuple[Windows, ...] = ()
    frames: int | None = None
