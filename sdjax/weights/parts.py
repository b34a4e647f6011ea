"""The networks with files: `UNet`, `VAE` and `TextEncoder` that read and write checkpoints.

`from_pretrained` gives (network, params). The network computes in `dtype` and its parameters are
held in `dtype`. It reads a diffusers folder (a pipeline's or the part's own), a single file or a
hub id.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models import clip, unet, vae
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import STEMS, read_part, write_part
from sdjax.weights.hub import locate
from sdjax.weights.names import params_from_state, state_from_params
from sdjax.weights.single_file import read_single_file
from sdjax.weights.tensors import dtype_of


def unet_inputs(config: unet.UNetConfig) -> tuple:
    """The smallest arguments of a U-Net's `init` or `apply`, after the parameters: zeros."""
    side = 2 ** (len(config.block_out_channels) - 1)
    x = jnp.zeros((1, side, side, config.in_channels))
    context = added = labels = None
    if config.cross_attention_dim is not None:
        context = jnp.zeros((1, 1, config.per_level("cross_attention_dim")[0]))
    given = config.projection_class_embeddings_input_dim
    if config.addition_embed_type == "text_time":
        width = config.addition_time_embed_dim
        added = {"text_embeds": jnp.zeros((1, given - width)), "time_ids": jnp.zeros((1, 1))}
    if config.class_embed_type in ("projection", "simple_projection"):
        labels = jnp.zeros((1, given))
    elif config.class_embed_type == "identity":
        width = config.time_embedding_dim or 4 * config.block_out_channels[0]
        labels = jnp.zeros((1, width))
    elif config.class_embed_type == "timestep" or config.num_class_embeds is not None:
        labels = jnp.zeros((1,), jnp.int32)
    return x, jnp.zeros((1,)), context, added, None, labels


def unet_shapes(config: unet.UNetConfig) -> dict:
    """Shapes of a U-Net's parameters, a tree of `jax.ShapeDtypeStruct`; nothing is computed."""
    network = unet.UNet(config)
    return jax.eval_shape(network.init, jax.random.key(0), *unet_inputs(config))["params"]


def vae_shapes(config: vae.VAEConfig) -> dict:
    """Shapes of an autoencoder's parameters."""
    return jax.eval_shape(vae.VAE(config).init, jax.random.key(0))


def text_shapes(config: clip.TextEncoderConfig) -> dict:
    """Shapes of a text encoder's parameters."""
    network, ids = clip.TextEncoder(config), jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), ids)["params"]


def load(
    part: Part, config_class, shapes: Callable, dtype: str, source: str | os.PathLike
) -> tuple[Any, dict]:
    """(configuration, params) of a part; SdjaxError where the weights are another network's."""
    try:
        config = config_class.from_dict(part.config)
        return config, params_from_state(part.state, dtype, shapes(config))
    except SdjaxError as error:
        raise SdjaxError(f"{source}: {error}") from error


def read(
    source: str | os.PathLike, name: str, variant: str | None, revision: str | None
) -> Part:
    """A part of a diffusers folder, of a single file, or of a hub repository."""
    path = locate(source, variant, revision)
    if path.is_dir():
        return read_part(path, name, variant)
    found = read_single_file(path).parts
    if name not in found:
        raise SdjaxError(f"{path} holds {', '.join(found)}, but no {name}")
    return found[name]


class UNet(unet.UNet):
    """The denoising network; see `sdjax.models.unet.UNet` for its inputs."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        dtype: str = "float32",
        variant: str | None = None,
        revision: str | None = None,
        remat: bool = False,
    ) -> tuple["UNet", dict]:
        """(network, params) of a folder, file or hub id; SdjaxError where it holds none."""
        part = read(source, "unet", variant, revision)
        config, params = load(part, unet.UNetConfig, unet_shapes, dtype, source)
        return cls(config, dtype_of(dtype), remat), params

    def save_pretrained(self, params, folder, dtype="float32", variant: str | None = None) -> None:
        """Writes config.json and the weights into `folder`."""
        state = state_from_params(params)
        write_part(folder, self.config.to_dict(), state, dtype, variant=variant)


class VAE(vae.VAE):
    """The autoencoder as functions of its parameters; see `sdjax.models.vae.VAE`."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        dtype: str = "float32",
        variant: str | None = None,
        revision: str | None = None,
        remat: bool = False,
    ) -> tuple["VAE", dict]:
        """(autoencoder, params) of a folder, file or hub id; SdjaxError where it holds none."""
        part = read(source, "vae", variant, revision)
        config, params = load(part, vae.VAEConfig, vae_shapes, dtype, source)
        return cls(config, dtype_of(dtype), remat), params

    def save_pretrained(self, params, folder, dtype="float32", variant: str | None = None) -> None:
        """Writes config.json and the weights into `folder`."""
        state = state_from_params(params)
        write_part(folder, self.config.to_dict(), state, dtype, variant=variant)


class TextEncoder(clip.TextEncoder):
    """CLIP's text transformer; see `sdjax.models.clip.TextEncoder`."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        part: str = "text_encoder",
        dtype: str = "float32",
        variant: str | None = None,
        revision: str | None = None,
        remat: bool = False,
    ) -> tuple["TextEncoder", dict]:
        """(network, params) of a folder, file or hub id; `part` "text_encoder_2" is SDXL's second one."""
        found = read(source, part, variant, revision)
        config, params = load(found, clip.TextEncoderConfig, text_shapes, dtype, source)
        return cls(config, dtype_of(dtype), remat), params

    def save_pretrained(self, params, folder, dtype="float32", variant: str | None = None) -> None:
        """Writes config.json and the weights into `folder`."""
        state = state_from_params(params)
        write_part(folder, self.config.to_dict(), state, dtype, STEMS[1], variant)
