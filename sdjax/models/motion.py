"""Motion modules of AnimateDiff (arXiv 2307.04725): attention over the frames of a clip.

They lie inside the U-Net, after each residual block and its attention, under diffusers' names; a
configuration has the fields of diffusers' MotionAdapter, and two that diffusers has in one value
only.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.attention import Attention
from sdjax.models.config_fields import known_fields
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.models.layers import Dense, zeros_init
from sdjax.models.norms import GroupNorm, LayerNorm
from sdjax.models.transformer import FeedForward
from sdjax.models.unet_config import UNetConfig

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class MotionConfig:
    """Fields and defaults of diffusers' MotionAdapter, and on which frames norms are taken.

    motion_max_seq_length: the most frames of a clip. motion_norm_num_groups: as in diffusers the
    modules inside a U-Net take its number of groups instead. motion_norm_over_frames: whether a motion
    module's norm is that of all frames together, as in diffusers, or of each, as in the authors'
    code. unet_norm_over_frames: the same of the norms of the U-Net around it: together in the
    first version of AnimateDiff as its authors run it.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    motion_layers_per_block: int | tuple[int, ...] = 2
    motion_transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    motion_mid_block_layers_per_block: int = 1
    motion_transformer_layers_per_mid_block: int | tuple[int, ...] = 1
    motion_num_attention_heads: int | tuple[int, ...] = 8
    motion_norm_num_groups: int = 32
    motion_max_seq_length: int = 32
    use_motion_mid_block: bool = True
    conv_in_channels: int | None = None
    motion_norm_over_frames: bool = True
    unet_norm_over_frames: bool = False

    def __post_init__(self):
        if self.conv_in_channels is not None:
            raise SdjaxError(
                "motion modules with a first convolution of their own (conv_in_channels = "
                f"{self.conv_in_channels}, those of PIA) are not supported"
            )
        if self.motion_mid_block_layers_per_block != 1:
            raise SdjaxError(
                "motion_mid_block_layers_per_block must be 1, got "
                f"{self.motion_mid_block_layers_per_block}"
            )

    @classmethod
    def from_dict(cls, config) -> "MotionConfig":
        """Reads a diffusers config.json given as a dict; SdjaxError for what is not known."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**known_fields(config, names, "motion modules'"))

    def to_dict(self):
        """A config.json that diffusers loads; it takes norms as it has them."""
        return {"_class_name": "MotionAdapter", **dataclasses.asdict(self)}

    def heads(self, level: int) -> int:
        """Attention heads at a level, counted from the finest."""
        heads = self.motion_num_attention_heads
        return heads if isinstance(heads, int) else heads[level]

    def depth(self, level: int, index: int) -> int:
        """Transformer blocks of the module `index` at a level."""
        depth = self.motion_transformer_layers_per_block
        depth = depth if isinstance(depth, int) else depth[level]
        return depth if isinstance(depth, int) else depth[index]

    @property
    def mid_depth(self) -> int:
        """Transformer blocks of the module in the middle."""
        depth = self.motion_transformer_layers_per_mid_block
        return depth if isinstance(depth, int) else depth[0]

    def check_fits(self, unet: UNetConfig) -> None:
        """SdjaxError where these motion modules are for another U-Net."""
        widths, own = unet.block_out_channels, self.block_out_channels
        layers = [unet.per_level("layers_per_block")[i] for i in range(len(widths))]
        count = self.motion_layers_per_block
        counts = [count] * len(own) if isinstance(count, int) else list(count)
        if tuple(own) != tuple(widths) or counts != layers:
            raise SdjaxError(
                "the motion modules are for a U-Net of another family: they have "
                f"{counts} modules of widths {list(own)}, the U-Net {layers} blocks of widths "
                f"{list(widths)}"
            )


class MotionBlock(nn.Module):
    """Twice attention over frames, then feed-forward, each normalised first and added.

    x [B, F, C] and positions float32 [F, C], which are added after the norms; returns [B, F, C].
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, positions):
        def norm(name):
            return LayerNorm(dtype=self.dtype, name=name)(x)

        def attend(name, value):
            head_dim = x.shape[-1] // self.heads
            value = value + positions.astype(self.dtype)
            return Attention(self.heads, head_dim, dtype=self.dtype, name=name)(value)

        x = x + attend("attn1", norm("norm1"))
        x = x + attend("attn2", norm("norm2"))
        return x + FeedForward(dtype=self.dtype, name="ff")(norm("norm3"))


class MotionModule(nn.Module):
    """Looks along the frames at each place: x [B·frames, H, W, C] -> the same, added to x.

    A fresh module adds nothing. Raises SdjaxError for more frames than it has positions.
    """

    config: MotionConfig
    frames: int
    groups: int
    heads: int
    layers: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        config, frames = self.config, self.frames
        check_frames(config, frames)
        count, height, width, channels = x.shape
        together = frames if config.motion_norm_over_frames else 1
        norm = GroupNorm(self.groups, EPSILON, frames=together, dtype=self.dtype, name="norm")
        h = norm(x).reshape(count // frames, frames, height * width, channels)
        h = h.swapaxes(1, 2).reshape(-1, frames, channels)
        h = Dense(channels, dtype=self.dtype, name="proj_in")(h)
        places = positions(frames, channels)
        for i in range(self.layers):
            block = MotionBlock(self.heads, self.dtype, name=f"transformer_blocks.{i}")
            h = block(h, places)
        h = Dense(channels, dtype=self.dtype, kernel_init=zeros_init, name="proj_out")(h)
        h = h.reshape(count // frames, height * width, frames, channels).swapaxes(1, 2)
        return x + h.reshape(x.shape)


def positions(frames: int, channels: int):
    """Sines in the even and cosines in the odd channels (arXiv 1706.03762): float32 [frames, C]."""
    sines, cosines = jnp.split(
        sinusoidal_embedding(jnp.arange(frames), channels, cosine_first=False), 2, axis=-1
    )
    return jnp.stack([sines, cosines], axis=-1).reshape(frames, channels)


def check_frames(config: MotionConfig, frames: int) -> None:
    """SdjaxError where a clip has more frames than the modules have positions."""
    if frames > config.motion_max_seq_length:
        raise SdjaxError(
            f"the motion modules know {config.motion_max_seq_length} positions, got a clip of "
            f"{frames} frames: make a shorter one, or a long one in overlapping windows"
        )
