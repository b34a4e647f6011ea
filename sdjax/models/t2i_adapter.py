"""T2I-Adapter (arXiv 2302.08453): a small network whose features of a picture steer the U-Net.

Parameters carry diffusers' names, and a configuration has the fields of its config.json.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.config_fields import known_fields
from sdjax.models.inputs import check_floats
from sdjax.models.layers import Conv

FULL, XL, LIGHT = "full_adapter", "full_adapter_xl", "light_adapter"


@dataclasses.dataclass(frozen=True)
class T2IAdapterConfig:
    """Fields and defaults of diffusers' T2IAdapter.

    adapter_type: "full_adapter" and "light_adapter" halve their features at each level after the
    first, "full_adapter_xl" once, at the third. `channels` are the levels' widths, of a light
    adapter without the last level, which is as wide as the one before it.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = FULL

    def __post_init__(self):
        if self.adapter_type not in (FULL, XL, LIGHT):
            raise SdjaxError(
                f"adapter_type must be one of {[FULL, XL, LIGHT]}, got {self.adapter_type!r}"
            )
        if self.adapter_type == XL and len(set(self.channels[2:])) > 1:
            raise SdjaxError(
                f"channels of a {XL} must be the same from the third on, got {self.channels}"
            )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(pixels of the picture per feature along each side, channels) of every level."""
        light, xl = self.adapter_type == LIGHT, self.adapter_type == XL
        widths = (*self.channels, self.channels[-1]) if light else self.channels
        halvings = [(i >= 2) if xl else i for i in range(len(widths))]
        return tuple(
            (self.downscale_factor * 2**halved, width)
            for halved, width in zip(halvings, widths, strict=True)
        )

    @classmethod
    def from_dict(cls, config) -> "T2IAdapterConfig":
        """Reads a diffusers config.json given as a dict; SdjaxError for what is not known."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**known_fields(config, names, "T2I-Adapter"))

    def to_dict(self):
        """A config.json that diffusers loads."""
        return {"_class_name": "T2IAdapter", **dataclasses.asdict(self)}


class AdapterResnet(nn.Module):
    """x plus a convolution of a rectified 3x3 convolution of it; the second is `kernel` wide."""

    kernel: int
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        h = Conv(channels, dtype=self.dtype, tile=self.tile, name="block1")(x)
        second = Conv(
            channels, self.kernel, dtype=self.dtype, tile=self.tile, name="block2"
        )
        return x + second(nn.relu(h))


class AdapterLevel(nn.Module):
    """Residual blocks of one level: x [B, H, W, *] -> [B, H, W, features], halved where `down`.

    A light level works at a quarter of its width.
    """

    features: int
    blocks: int
    light: bool
    down: bool
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x):
        x = halved(x) if self.down else x
        width = self.features // 4 if self.light else self.features
        if self.light or x.shape[-1] != width:
            x = Conv(width, 1, dtype=self.dtype, name="in_conv")(x)
        for i in range(self.blocks):
            kernel = 3 if self.light else 1
            x = AdapterResnet(kernel, self.dtype, self.tile, name=f"resnets.{i}")(x)
        return Conv(self.features, 1, dtype=self.dtype, name="out_conv")(x) if self.light else x


class AdapterBody(nn.Module):
    """The levels in turn: [B, h, w, channels] to a tuple with the features of each."""

    config: T2IAdapterConfig
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x):
        config, features = self.config, []
        light, finer = config.adapter_type == LIGHT, config.downscale_factor
        if not light:
            x = Conv(config.channels[0], dtype=self.dtype, tile=self.tile, name="conv_in")(x)
        for i, (factor, width) in enumerate(config.levels):
            down, finer = factor > finer, factor
            level = AdapterLevel(
                width, config.num_res_blocks, light, down, self.dtype, self.tile, name=f"body.{i}"
            )
            x = level(x)
            features.append(x)
        return tuple(features)


class T2IAdapter(nn.Module):
    """The network; `tile` as for the U-Net.

    picture [B, f·h, f·w, in_channels] with values in [0, 1] for f = `downscale_factor`. Returns
    the tuple that the U-Net takes as `features`, float32 [B, *, *, width] for each level. Multiply
    them to weaken the adapter, add those of several.
    """

    config: T2IAdapterConfig
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, picture):
        config = self.config
        check_floats(": bytes x become x / 255", picture=picture)
        factor = config.downscale_factor
        if (
            picture.ndim != 4
            or picture.shape[-1] != config.in_channels
            or any(side % factor for side in picture.shape[1:3])
        ):
            raise SdjaxError(
                f"T2I-Adapter picture: expected [batch, height, width, {config.in_channels}] with "
                f"sides that are multiples of {factor}, got {picture.shape}"
            )
        x = unshuffled(picture, factor).astype(self.dtype)
        features = AdapterBody(config, self.dtype, self.tile, name="adapter")(x)
        return tuple(level.astype(jnp.float32) for level in features)


def unshuffled(x, factor):
    """[B, f·h, f·w, C] -> [B, h, w, C·f·f], each square's pixels as channels in PyTorch's order."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(*x.shape[:2], x.shape[3], -1)


def halved(x):
    """Means of 2x2 pixels, of what there is of them at an odd edge: [B, h, w, C] -> half, up."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    x = x.reshape(batch, x.shape[1] // 2, 2, x.shape[2] // 2, 2, channels)
    return x.astype(jnp.float32).mean((2, 4)).astype(x.dtype)
