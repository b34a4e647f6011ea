"""TAESD, the small autoencoder for previews, under the names of diffusers' AutoencoderTiny."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.config_fields import known_fields
from sdjax.models.inputs import OF_PIXELS, check_floats
from sdjax.models.layers import Conv, UpsampleConv

# Values of diffusers' fields that this network has one of.
FIXED = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
}
IGNORED = ("block_out_channels",)  # a copy of decoder_block_out_channels that diffusers writes


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig:
    """The fields of diffusers' `AutoencoderTiny` that shape the network, with its defaults.

    One number of residual blocks a level, in the order in which the levels are passed; all levels
    have one width. `encode` and `decode` give and take raw latents.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    force_upcast: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self):
        levels = len(self.num_encoder_blocks)
        for side in ("encoder", "decoder"):
            widths = getattr(self, f"{side}_block_out_channels")
            blocks = getattr(self, f"num_{side}_blocks")
            if len(widths) != levels or len(blocks) != levels or len(set(widths)) != 1:
                raise SdjaxError(
                    f"expected {levels} equal {side}_block_out_channels and {levels} "
                    f"num_{side}_blocks, got {widths} and {blocks}"
                )

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along each side."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TinyVAEConfig":
        """Reads a diffusers config.json; see `known_fields` for what is left out of it.

        Raises SdjaxError for a key or a value that this network cannot follow.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        values = known_fields(config, {*names, *FIXED, *IGNORED}, "AutoencoderTiny")
        for key, value in FIXED.items():
            if values.get(key, value) != value:
                raise SdjaxError(f"{key}: expected {value!r}, got {values[key]!r}")
        return cls(**{key: value for key, value in values.items() if key in names})

    def to_dict(self) -> dict[str, Any]:
        """A config.json that diffusers loads."""
        fields = dataclasses.asdict(self)
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return {"_class_name": "AutoencoderTiny", **FIXED, **lists}


class TinyBlock(nn.Module):
    """Three convolutions with ReLU between, added to x: [B, H, W, C] to the same."""

    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, y = x.shape[-1], x
        for i in (0, 2, 4):  # between them, in PyTorch's list, stand the activations
            conv = Conv(channels, dtype=self.dtype, tile=self.tile, name=f"conv.{i}")
            y = conv(y if i == 0 else nn.relu(y))
        return nn.relu(x + y)


class TinyEncoder(nn.Module):
    """Images [B, H, W, in_channels] in [-1, 1] to latents [B, H/f, W/f, latent_channels]."""

    config: TinyVAEConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, layer = self.config, 0
        options = {"dtype": self.dtype, "tile": self.tile}
        x = (x + 1) / 2
        levels = zip(config.encoder_block_out_channels, config.num_encoder_blocks, strict=True)
        for level, (width, blocks) in enumerate(levels):
            down = {"stride": 2, "padding": 1, "use_bias": False} if level else {}
            x = Conv(width, name=f"layers.{layer}", **options, **down)(x)
            for i in range(layer + 1, layer + 1 + blocks):
                x = TinyBlock(**options, name=f"layers.{i}")(x)
            layer += 1 + blocks
        return Conv(config.latent_channels, name=f"layers.{layer}", **options)(x)


class TinyDecoder(nn.Module):
    """Latents [B, h, w, latent_channels] to images [B, f·h, f·w, out_channels] in [-1, 1]."""

    config: TinyVAEConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        config, layer = self.config, 2
        options = {"dtype": self.dtype, "tile": self.tile}
        widths, levels = config.decoder_block_out_channels, len(config.num_decoder_blocks)
        x = jnp.tanh(z / 3) * 3
        x = nn.relu(Conv(widths[0], name="layers.0", **options)(x))
        for level, (width, blocks) in enumerate(zip(widths, config.num_decoder_blocks, strict=True)):
            for i in range(layer, layer + blocks):
                x = TinyBlock(**options, name=f"layers.{i}")(x)
            layer += blocks
            if level < levels - 1:
                layer += 1  # PyTorch's list has the upsampling as an entry of its own
                x = UpsampleConv(width, use_bias=False, name=f"layers.{layer}", **options)(x)
                layer += 1
        x = Conv(config.out_channels, name=f"layers.{layer}", **options)(x)
        return 2 * x - 1


class AutoencoderTiny(nn.Module):
    """Encoder and decoder. `TinyVAE` is the way to use it."""

    config: TinyVAEConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    def setup(self):
        self.encoder = TinyEncoder(self.config, self.dtype, self.tile)
        self.decoder = TinyDecoder(self.config, self.dtype, self.tile)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images to latents."""
        return self.encoder(images)

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents to images."""
        return self.decoder(z)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The reconstruction."""
        return self.decoder(self.encoder(images))


@dataclasses.dataclass(frozen=True)
class TinyVAE:
    """TAESD as functions of its parameters, with the interface of `VAE`.

    Images are float [B, H, W, 3] in [-1, 1], H and W multiples of `config.downsampling`; latents
    are those that the U-Net sees (scaling factor 1). Results are float32. `tile` as for `VAE`.
    """

    config: TinyVAEConfig = TinyVAEConfig()
    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @property
    def module(self) -> AutoencoderTiny:
        """The Linen module behind the functions."""
        return AutoencoderTiny(self.config, self.dtype, self.tile)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh float32 parameters."""
        side = self.config.downsampling
        images = jnp.zeros((1, side, side, self.config.in_channels), jnp.float32)
        return jax.jit(self.module.init)(key, images)["params"]

    def encode(self, params, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Raw latents. The encoder is deterministic: a key changes nothing."""
        del key
        factor, channels = self.config.downsampling, self.config.in_channels
        check_floats(OF_PIXELS, images=images)
        shape = images.shape
        if len(shape) != 4 or shape[1] % factor or shape[2] % factor or shape[3] != channels:
            raise SdjaxError(
                f"images must be [batch, height, width, {channels}] with height and width "
                f"multiples of {factor}, got shape {shape}"
            )
        return self.module.apply({"params": params}, images, method="encode").astype(jnp.float32)

    def decode(self, params, z: jax.Array) -> jax.Array:
        """Images from raw latents; not clipped to [-1, 1]."""
        channels = self.config.latent_channels
        check_floats(latents=z)
        if z.ndim != 4 or z.shape[-1] != channels:
            raise SdjaxError(
                f"latents must be [batch, height, width, {channels}], got shape {z.shape}"
            )
        return self.module.apply({"params": params}, z, method="decode").astype(jnp.float32)
