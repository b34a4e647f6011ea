"""The networks with files: `UNet`, `VAE` and `TextEncoder` that read and write diffusers folders.

`from_pretrained` gives (network, params). The network computes in `dtype` and its parameters are
held in `dtype`; a folder is a pipeline's or the part's own.
"""

import os

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models import clip, unet, vae
from sdjax.weights.folder import STEMS, part_folder, read_json, read_weights, write_part
from sdjax.weights.names import params_from_state, state_from_params
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


def _read(folder, part, config_class, shapes, dtype, variant):
    folder = part_folder(folder, part)
    config = config_class.from_dict(read_json(folder / "config.json"))
    state = read_weights(folder, variant)
    try:
        return config, params_from_state(state, dtype, shapes(config))
    except SdjaxError as error:
        raise SdjaxError(f"{folder}: {error}") from error


class UNet(unet.UNet):
    """The denoising network; see `sdjax.models.unet.UNet` for its inputs."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        dtype: str = "float32",
        variant: str | None = None,
        remat: bool = False,
    ) -> tuple["UNet", dict]:
        """(network, params) of a diffusers folder; SdjaxError where it holds something else."""
        config, params = _read(folder, "unet", unet.UNetConfig, unet_shapes, dtype, variant)
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
        folder: str | os.PathLike,
        *,
        dtype: str = "float32",
        variant: str | None = None,
        remat: bool = False,
    ) -> tuple["VAE", dict]:
        """(autoencoder, params) of a diffusers folder; SdjaxError where it holds something else."""
        config, params = _read(folder, "vae", vae.VAEConfig, vae_shapes, dtype, variant)
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
        folder: str | os.PathLike,
        *,
        part: str = "text_encoder",
        dtype: str = "float32",
        variant: str | None = None,
        remat: bool = False,
    ) -> tuple["TextEncoder", dict]:
        """(network, params) of a diffusers folder; `part` "text_encoder_2" is SDXL's second one."""
        config, params = _read(folder, part, clip.TextEncoderConfig, text_shapes, dtype, variant)
        return cls(config, dtype_of(dtype), remat), params

    def save_pretrained(self, params, folder, dtype="float32", variant: str | None = None) -> None:
        """Writes config.json and the weights into `folder`."""
        state = state_from_params(params)
        write_part(folder, self.config.to_dict(), state, dtype, STEMS[1], variant)
