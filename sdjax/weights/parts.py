"""The networks with files: `UNet`, `VAE`, `TextEncoder`, … that read and write checkpoints.

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
from sdjax.models import clip, controlnet, tiny_vae, unet, vae
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import (
    STEMS,
    part_folder,
    read_config,
    read_configs,
    read_part,
    write_part,
)
from sdjax.weights.hub import locate
from sdjax.weights.kept_shapes import kept
from sdjax.weights.names import params_from_state, state_from_params
from sdjax.weights.single_file import read_file, read_single_file
from sdjax.weights.tensors import dtype_of
from sdjax.words import told_words

# Fields of all configurations that count layers.
DEPTHS = (
    "layers_per_block",
    "num_decoder_blocks",
    "num_encoder_blocks",
    "num_hidden_layers",
    "reverse_transformer_layers_per_block",
    "transformer_layers_per_block",
)


def unet_inputs(config: unet.UNetConfig) -> tuple:
    """The smallest arguments of a U-Net's `init` or `apply`, after the parameters: zeros."""
    side = 2 ** (len(config.block_out_channels) - 1)
    x = jnp.zeros((1, side, side, config.in_channels))
    context = added = labels = None
    if config.context_width is not None:
        context = jnp.zeros((1, 1, config.context_width))
    given = config.projection_class_embeddings_input_dim
    if config.addition_embed_type == "text_time":
        width = config.addition_time_embed_dim
        added = {"text_embeds": jnp.zeros((1, given - width)), "time_ids": jnp.zeros((1, 1))}
    elif config.addition_embed_type == "time_ids":
        added = {"time_ids": jnp.zeros((1, given // config.addition_time_embed_dim))}
    if config.class_embed_type in ("projection", "simple_projection"):
        labels = jnp.zeros((1, given))
    elif config.class_embed_type == "identity":
        width = config.time_embedding_dim or 4 * config.block_out_channels[0]
        labels = jnp.zeros((1, width))
    elif config.class_embed_type == "timestep" or config.num_class_embeds is not None:
        labels = jnp.zeros((1,), jnp.int32)
    return x, jnp.zeros((1,)), context, added, None, labels


@kept
def unet_shapes(config: unet.UNetConfig) -> dict:
    """Shapes of a U-Net's parameters, a tree of `jax.ShapeDtypeStruct`; nothing is computed.

    Tracing a large network takes as long as reading its file, so that the shapes are kept for the
    next model of this configuration; leave the tree as it is. So with the other `…_shapes`.
    """
    network = unet.UNet(config)
    return jax.eval_shape(network.init, jax.random.key(0), *unet_inputs(config))["params"]


@kept
def vae_shapes(config: vae.VAEConfig) -> dict:
    """Shapes of an autoencoder's parameters."""
    return jax.eval_shape(vae.VAE(config).init, jax.random.key(0))


@kept
def tiny_vae_shapes(config: tiny_vae.TinyVAEConfig) -> dict:
    """Shapes of a TAESD's parameters."""
    return jax.eval_shape(tiny_vae.TinyVAE(config).init, jax.random.key(0))


@kept
def controlnet_shapes(config: controlnet.ControlNetConfig) -> dict:
    """Shapes of a ControlNet's parameters."""
    network = controlnet.ControlNet(config)
    x, t, context, added, _, labels = unet_inputs(config)
    sides = (config.downsampling * side for side in x.shape[1:3])
    picture = jnp.zeros((1, *sides, config.conditioning_channels))
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), x, t, context, picture, added, labels
    )
    return shapes["params"]


@kept
def text_shapes(config: clip.TextEncoderConfig) -> dict:
    """Shapes of a text encoder's parameters."""
    network, ids = clip.TextEncoder(config), jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), ids)["params"]


def load(
    part: Part, config_class, shapes: Callable, dtype: str, source: str | os.PathLike,
    quantize: str | None = None,
) -> tuple[Any, dict]:  # fmt: skip
    """(configuration, params) of a part; SdjaxError where the weights are another network's.

    quantize: as of `params_from_state`.
    """
    try:
        config, expected = _architecture(part, config_class, shapes)
        return config, params_from_state(part.state, dtype, expected, quantize)
    except SdjaxError as error:
        raise SdjaxError(f"{source}: {error}") from error


def configuration(part: Part, config_class, source: str | os.PathLike):
    """The configuration of a part alone, before its weights are read; SdjaxError as of `load`."""
    try:
        return config_class.from_dict(part.config)
    except SdjaxError as error:
        raise SdjaxError(f"{source}: {error}") from error
    except Exception as error:
        raise SdjaxError(f"{source}: {_no_network(error)}") from error


def _no_network(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"no network can be made of the configuration: {type(error).__name__}: {reason}"


def _architecture(part: Part, config_class, shapes: Callable) -> tuple[Any, dict]:
    """(configuration, shapes of the parameters); SdjaxError for values that make no network."""
    try:
        config = config_class.from_dict(part.config)
        for name in DEPTHS:
            value = getattr(config, name, None) or 0
            if max(_flat(value)) > len(part.state):
                raise SdjaxError(  # tracing so many would take for ever
                    f"{name} is {value}, but there are only {len(part.state)} tensors"
                )
        return config, shapes(config)
    except SdjaxError:
        raise
    except Exception as error:  # whatever Flax meets with numbers and names that do not fit
        raise SdjaxError(_no_network(error)) from error


def _flat(value) -> list:
    """The numbers in nested tuples."""
    return [n for item in value for n in _flat(item)] if isinstance(value, tuple) else [value]


def read(
    source: str | os.PathLike,
    name: str,
    variant: str | None,
    revision: str | None,
    config: str | os.PathLike | None = None,
    alone: bool = False,
) -> Part:
    """A part of a diffusers folder, of a single file, or of a hub repository.

    config: a folder with the configuration of a single file's part. alone: whether the second text
    encoder of a file that holds nothing else will do for the first.
    """
    path = locate(source, variant, revision)
    if path.is_dir():
        if config is not None:
            raise SdjaxError(f"config is for single files; {path} has configurations of its own")
        return read_part(path, name, variant)
    found = read_single_file(path, None if config is None else read_configs(config)).parts
    if alone and name == "text_encoder" and set(found) == {"text_encoder_2"}:
        name = "text_encoder_2"
    if name not in found:
        raise SdjaxError(f"{path} holds {', '.join(found)}, but no {name}")
    return found[name]


def read_alone(
    source: str | os.PathLike,
    name: str,
    variant: str | None,
    revision: str | None,
    config: str | os.PathLike | None,
    renamed: Callable,
    inferred: Callable,
) -> Part:
    """A network that stands beside a model: its own folder, a pipeline's, or a single file.

    renamed: a state under the names of the network's parameters. inferred: the configuration of
    such a state, for a single file without one.
    """
    path = locate(source, variant, revision)
    if path.is_dir():
        if config is not None:
            raise SdjaxError(f"config is for single files; {path} has a configuration of its own")
        found = read_part(path, name, variant)
        return Part(found.config, renamed(found.state))
    try:
        state = renamed(read_file(path)[0])
        if config is None:
            return Part(inferred(state), state)
    except SdjaxError as error:
        raise SdjaxError(f"{path}: {error}") from error
    return Part(read_config(part_folder(config, name) / "config.json"), state)


class Pretrained:
    """Files for a network: what `UNet`, `VAE`, `TextEncoder`, `ControlNet`, … share."""

    @classmethod
    @told_words
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        part: str | None = None,
        dtype: str = "float32",
        variant: str | None = None,
        revision: str | None = None,
        config: str | os.PathLike | None = None,
        quantize: str | None = None,
        **options,
    ):
        """(network, params) of a folder, file or hub id.

        part: which part of a pipeline, such as "text_encoder_2". dtype: what the network computes
        in and its parameters are held in. variant, revision: see `sdjax.weights.hub.locate`.
        config: a diffusers folder, the part's own or a pipeline's, whose config.json a single file
        has in place of what its shapes suggest. quantize: large weights in few bits: "int8", "fp8",
        "int4" or "nf4", see `sdjax.quantize`. options: of the network, such as remat.
        Raises SdjaxError where it is not found there.
        """
        found = cls.read(source, part, variant, revision, config)
        config, params = load(found, cls.config_class, cls.shapes, dtype, source, quantize)
        return cls(config, dtype_of(dtype), **options), params

    @classmethod
    def read(cls, source, part, variant, revision, config) -> Part:
        """The configuration and the state, under the names of the network's parameters."""
        return read(source, part or cls.part, variant, revision, config, alone=part is None)

    @told_words
    def save_pretrained(
        self, params, folder: str | os.PathLike, dtype="float32", variant: str | None = None
    ) -> None:
        """Writes config.json and the weights into `folder`."""
        state = state_from_params(params)
        write_part(folder, self.config.to_dict(), state, dtype, self.stem, variant)


class UNet(Pretrained, unet.UNet):
    """The denoising network; see `sdjax.models.unet.UNet` for its inputs."""

    part, stem = "unet", STEMS[0]
    config_class, shapes = unet.UNetConfig, staticmethod(unet_shapes)


class VAE(Pretrained, vae.VAE):
    """The autoencoder as functions of its parameters; see `sdjax.models.vae.VAE`."""

    part, stem = "vae", STEMS[0]
    config_class, shapes = vae.VAEConfig, staticmethod(vae_shapes)


class TinyVAE(Pretrained, tiny_vae.TinyVAE):
    """TAESD as functions of its parameters; see `sdjax.models.tiny_vae.TinyVAE`."""

    part, stem = "vae", STEMS[0]
    config_class, shapes = tiny_vae.TinyVAEConfig, staticmethod(tiny_vae_shapes)


class TextEncoder(Pretrained, clip.TextEncoder):
    """CLIP's text transformer; see `sdjax.models.clip.TextEncoder`."""

    part, stem = "text_encoder", STEMS[1]
    config_class, shapes = clip.TextEncoderConfig, staticmethod(text_shapes)


class ControlNet(Pretrained, controlnet.ControlNet):
    """The network that steers a U-Net by a picture; see `sdjax.models.controlnet.ControlNet`."""

    part, stem = "controlnet", STEMS[0]
    config_class, shapes = controlnet.ControlNetConfig, staticmethod(controlnet_shapes)
