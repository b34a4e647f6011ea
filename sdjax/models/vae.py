"""The autoencoder of latent diffusion, AutoencoderKL (arXiv 2112.10752, section 3.1 and G.1).

Parameters carry diffusers' names, and a configuration has the fields of its config.json.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.attention import Attention
from sdjax.models.blocks import Downsample, ResnetBlock, Upsample
from sdjax.models.config_fields import known_fields
from sdjax.models.inputs import OF_PIXELS, check_floats
from sdjax.models.layers import Conv
from sdjax.models.norms import GroupNorm
from sdjax.models.remat import rematted
from sdjax.models.spatio_temporal import SpatioTemporalResnet, TimeConv

NORM_EPSILON = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)
DOWN_BLOCK = "DownEncoderBlock2D"
UP_BLOCK = "UpDecoderBlock2D"
PICTURES, CLIPS = "AutoencoderKL", "AutoencoderKLTemporalDecoder"
# What the second has a field for.
_OF_CLIPS = (
    "in_channels", "out_channels", "down_block_types", "block_out_channels", "layers_per_block",
    "latent_channels", "sample_size", "scaling_factor", "force_upcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The fields of diffusers' `AutoencoderKL`, with its defaults.

    `temporal` makes it the `AutoencoderKLTemporalDecoder` of Stable Video Diffusion (arXiv
    2311.15127), whose decoder looks along the frames of clips.

    `block_out_channels` has one width a level, finest first; each level but the last halves the
    image. The fields from `sample_size` to `force_upcast` do not shape the network: `decode` and
    `encode` take and give raw latents, and the pipeline applies the factors.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (DOWN_BLOCK,)
    up_block_types: tuple[str, ...] = (UP_BLOCK,)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    temporal: bool = False

    def __post_init__(self):
        levels = len(self.block_out_channels)
        if self.temporal and self.layers_per_block != 2:
            raise SdjaxError(
                f"layers_per_block must be 2 in a {CLIPS}, as in the published ones, got "
                f"{self.layers_per_block}"
            )
        if self.down_block_types != (DOWN_BLOCK,) * levels:
            raise SdjaxError(
                f"down_block_types must be {levels} times {DOWN_BLOCK!r}, one for each of "
                f"block_out_channels, got {self.down_block_types}"
            )
        if self.up_block_types != (UP_BLOCK,) * levels:
            raise SdjaxError(
                f"up_block_types must be {levels} times {UP_BLOCK!r}, one for each of "
                f"block_out_channels, got {self.up_block_types}"
            )
        if self.act_fn != "silu":
            raise SdjaxError(f"act_fn must be 'silu', got {self.act_fn!r}")
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise SdjaxError(
                    f"block_out_channels must be multiples of norm_num_groups "
                    f"{self.norm_num_groups}, got {self.block_out_channels}"
                )

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VAEConfig":
        """Reads a diffusers config.json; see `known_fields` for what is left out of it.

        Raises SdjaxError for a key or a value that this network cannot follow.
        """
        if config.get("_class_name") == CLIPS:
            values = known_fields(config, _OF_CLIPS, CLIPS)
            levels = len(values.get("block_out_channels", cls.block_out_channels))
            up = (UP_BLOCK,) * levels
            return cls(**values, up_block_types=up, use_post_quant_conv=False, temporal=True)
        names = {field.name for field in dataclasses.fields(cls)} - {"temporal"}
        return cls(**known_fields(config, names, PICTURES))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that diffusers loads."""
        fields = dataclasses.asdict(self)
        if fields.pop("temporal"):
            fields = {name: fields[name] for name in _OF_CLIPS}
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return {"_class_name": CLIPS if self.temporal else PICTURES, **lists}


def residual(width, groups, dtype, tile, frames, name):
    """A residual block, along the frames of clips too where they have a number."""
    if frames is None:
        return ResnetBlock(width, groups, NORM_EPSILON, dtype=dtype, tile=tile, name=name)
    return SpatioTemporalResnet(width, frames, groups, NORM_EPSILON, True, dtype, tile, name=name)


class Level(nn.Module):
    """Residual blocks at one width, then a change of resolution where asked.

    resize: "down", "up" or None. frames: see `residual`. x [B, H, W, C] -> [B, H', W', features].
    """

    features: int
    layers: int
    groups: int
    resize: str | None
    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)
    frames: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            options = self.groups, self.dtype, self.tile, self.frames
            x = residual(self.features, *options, f"resnets.{i}")(x)
        if self.resize == "down":
            x = Downsample(0, self.dtype, self.tile, name="downsamplers.0")(x)
        elif self.resize == "up":
            x = Upsample(self.dtype, self.tile, name="upsamplers.0")(x)
        return x


class Middle(nn.Module):
    """Two residual blocks with single-head attention between: [B, H, W, C] to the same."""

    groups: int
    add_attention: bool
    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)
    frames: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]

        def resnet(i: int) -> nn.Module:
            options = self.groups, self.dtype, self.tile, self.frames
            return residual(channels, *options, f"resnets.{i}")

        x = resnet(0)(x)
        if self.add_attention:
            x = Attention(
                heads=1,
                head_dim=channels,
                qkv_bias=True,
                norm_groups=self.groups,
                norm_epsilon=NORM_EPSILON,
                residual=True,
                dtype=self.dtype,
                name="attentions.0",
            )(x)
        return resnet(1)(x)


class Encoder(nn.Module):
    """Images [B, H, W, in_channels] to moments [B, H/f, W/f, 2 · latent_channels]."""

    config: VAEConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, dtype, tile = self.config, self.dtype, self.tile
        level, middle = (rematted(m, self.remat) for m in (Level, Middle))
        widths, groups = config.block_out_channels, config.norm_num_groups
        x = Conv(widths[0], dtype=dtype, tile=tile, name="conv_in")(x)
        for i, width in enumerate(widths):
            resize = "down" if i < len(widths) - 1 else None
            layers, name = config.layers_per_block, f"down_blocks.{i}"
            x = level(width, layers, groups, resize, dtype, tile, name=name)(x)
        x = middle(groups, config.mid_block_add_attention, dtype, tile, name="mid_block")(x)
        x = GroupNorm(groups, NORM_EPSILON, silu=True, dtype=dtype, name="conv_norm_out")(x)
        return Conv(2 * config.latent_channels, dtype=dtype, tile=tile, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents [B, h, w, latent_channels] to images [B, f·h, f·w, out_channels].

    Of a temporal decoder B is that of clips times their frames.
    """

    config: VAEConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, z: jax.Array, frames: int = 1) -> jax.Array:
        along = frames if self.config.temporal else None
        config, dtype, tile = self.config, self.dtype, self.tile
        level, middle = (rematted(m, self.remat) for m in (Level, Middle))
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        x = Conv(widths[0], dtype=dtype, tile=tile, name="conv_in")(z)
        attention = config.mid_block_add_attention
        x = middle(groups, attention, dtype, tile, along, name="mid_block")(x)
        for i, width in enumerate(widths):
            resize = "up" if i < len(widths) - 1 else None
            layers, name = config.layers_per_block + 1, f"up_blocks.{i}"
            x = level(width, layers, groups, resize, dtype, tile, along, name=name)(x)
        x = GroupNorm(groups, NORM_EPSILON, silu=True, dtype=dtype, name="conv_norm_out")(x)
        x = Conv(config.out_channels, dtype=dtype, tile=tile, name="conv_out")(x)
        return TimeConv(x.shape[-1], along, dtype, name="time_conv_out")(x) if along else x


class AutoencoderKL(nn.Module):
    """Encoder and decoder with their 1x1 convolutions at the latent. `VAE` is the way to use it."""

    config: VAEConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False
    tile: tuple[bool, bool] = (False, False)

    def setup(self):
        config, dtype = self.config, self.dtype
        self.encoder = Encoder(config, dtype, self.remat, self.tile)
        self.decoder = Decoder(config, dtype, self.remat, self.tile)
        if config.use_quant_conv:
            self.quant_conv = Conv(2 * config.latent_channels, kernel=1, dtype=dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = Conv(config.latent_channels, kernel=1, dtype=dtype)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images to the posterior's mean and log-variance, side by side in the last axis."""
        moments = self.encoder(images)
        return self.quant_conv(moments) if self.config.use_quant_conv else moments

    def decode(self, z: jax.Array, frames: int = 1) -> jax.Array:
        """Latents to images, which are clips of so many frames for a temporal decoder."""
        z = self.post_quant_conv(z) if self.config.use_post_quant_conv else z
        return self.decoder(z, frames)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The reconstruction from the posterior's mean."""
        return self.decode(jnp.split(self.encode(images), 2, axis=-1)[0])


@dataclasses.dataclass(frozen=True)
class VAE:
    """An autoencoder as functions of its parameters; hashable, so it can be a static argument.

    Images are float [B, H, W, 3] in [-1, 1], H and W multiples of `config.downsampling`; latents
    are raw, without the scaling factor, [B, H/f, W/f, latent_channels]. All results are float32;
    `dtype` is that of the computation. `remat` recomputes each level in the backward pass.
    `tile` (y, x) makes pictures go on over the edges of these axes, as `UNet`'s does.
    """

    config: VAEConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False
    tile: tuple[bool, bool] = (False, False)

    @property
    def module(self) -> AutoencoderKL:
        """The Linen module behind the functions."""
        return AutoencoderKL(self.config, self.dtype, self.remat, self.tile)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh float32 parameters."""
        side = self.config.downsampling
        images = jnp.zeros((1, side, side, self.config.in_channels), jnp.float32)
        return jax.jit(self.module.init)(key, images)["params"]

    def posterior(self, params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of q(z|images), the latter clipped to [-30, 20]."""
        factor = self.config.downsampling
        channels = self.config.in_channels
        check_floats(OF_PIXELS, images=images)
        _, height, width, given = _shape4(images, "images")
        if height % factor or width % factor or given != channels:
            raise SdjaxError(
                f"images must be [batch, height, width, {channels}] with height and width "
                f"multiples of {factor}, got shape {images.shape}"
            )
        moments = self.module.apply({"params": params}, images, method="encode")
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def encode(self, params, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """A draw from q(z|images), or its mode where no key is given.

        key: one key, or one for each image as an array [B]; an image with its own key gives the
        same latent in every batch.
        """
        mean, log_variance = self.posterior(params, images)
        if key is None:
            return mean
        if jnp.shape(jax.random.key_data(key))[:-1] == (len(mean),):
            noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(key)
        else:
            noise = jax.random.normal(key, mean.shape)
        return mean + jnp.exp(0.5 * log_variance) * noise

    def decode(self, params, z: jax.Array, frames: int = 1) -> jax.Array:
        """Images from raw latents; not clipped to [-1, 1].

        frames: how many follow each other as a clip, for a temporal decoder.
        """
        channels = self.config.latent_channels
        check_floats(latents=z)
        if _shape4(z, "latents")[-1] != channels:
            raise SdjaxError(
                f"latents must be [batch, height, width, {channels}], got shape {z.shape}"
            )
        if len(z) % frames or (frames > 1 and not self.config.temporal):
            raise SdjaxError(f"{len(z)} latents are no clips of {frames} frames of this decoder")
        made = self.module.apply({"params": params}, z, frames, method="decode")
        return made.astype(jnp.float32)


def _shape4(array: jax.Array, name: str) -> tuple[int, ...]:
    if array.ndim != 4:
        raise SdjaxError(f"{name} must be [batch, height, width, channels], got {array.shape}")
    return array.shape
