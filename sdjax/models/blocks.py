"""Residual blocks and resampling of the U-Net and the autoencoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.layers import Conv, Dense, UpsampleConv, gelu, zeros_init
from sdjax.models.norms import GroupNorm, LayerNorm


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the time embedding between and a shortcut around.

    x [B, H, W, in], emb [B, E] **after** its activation, or None; returns [B, H, W, features].
    `scale_shift` lets emb scale and shift the second norm instead of being added before it; `tile`
    as for `convolve`, here and in the other blocks; `frames` as for `GroupNorm`.
    """

    features: int
    groups: int = 32
    epsilon: float = 1e-5
    scale_shift: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)
    frames: int = 1

    @nn.compact
    def __call__(self, x, emb=None):
        def norm(name):
            return GroupNorm(
                self.groups, self.epsilon, True, self.frames, dtype=self.dtype, name=name
            )

        h = norm("norm1")(x)
        h = Conv(self.features, dtype=self.dtype, tile=self.tile, name="conv1")(h)
        modulation = None
        if emb is not None:
            width = self.features * (2 if self.scale_shift else 1)
            emb = Dense(width, dtype=self.dtype, name="time_emb_proj")(emb)
            if self.scale_shift:
                modulation = jnp.split(emb, 2, axis=-1)
            else:
                h = h + emb[:, None, None]
        h = norm("norm2")(h, modulation)
        h = _dropout(self, h)
        out = Conv(
            self.features, dtype=self.dtype, kernel_init=zeros_init, tile=self.tile, name="conv2"
        )
        return _shortcut(self, x) + out(h)


class ConvNextBlock(nn.Module):
    """ConvNeXt block (arXiv 2201.03545) with the time embedding added after its depthwise 7x7
    convolution: layer norm, four times wider, GELU, back, scaled per channel by a learned gamma.

    Arguments and result as for ResnetBlock.
    """

    features: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x, emb=None):
        channels = x.shape[-1]
        depthwise = Conv(
            channels, 7, groups=channels, dtype=self.dtype, tile=self.tile, name="dwconv"
        )
        h = depthwise(x)
        if emb is not None:
            h = h + Dense(channels, dtype=self.dtype, name="time_emb_proj")(emb)[:, None, None]
        h = LayerNorm(1e-6, dtype=self.dtype, name="norm")(h)
        h = jax.checkpoint(gelu)(Dense(4 * self.features, dtype=self.dtype, name="pwconv1")(h))
        h = _dropout(self, h)
        h = Dense(self.features, dtype=self.dtype, name="pwconv2")(h)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (self.features,), jnp.float32)
        return _shortcut(self, x) + h * gamma.astype(self.dtype)


class Downsample(nn.Module):
    """Convolution of stride 2. [B, H, W, C] -> [B, H/2, W/2, C].

    padding 1 pads all sides; 0 pads one row below and one column to the right, as the original
    DDPM code and the autoencoder do.
    """

    padding: int = 1
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x):
        padding = ((0, 1), (0, 1)) if self.padding == 0 else self.padding
        conv = Conv(
            x.shape[-1], stride=2, padding=padding, dtype=self.dtype, tile=self.tile, name="conv"
        )
        return conv(x)


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, then a convolution. [B, H, W, C] -> [B, h, w, C].

    `size` (h, w) crops by a pixel where the level above had an odd size.
    """

    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x, size=None):
        return UpsampleConv(x.shape[-1], dtype=self.dtype, tile=self.tile, name="conv")(x, size)


def _dropout(module, x):
    """Drops only where the caller gave a random stream named "dropout": in training."""
    return nn.Dropout(module.dropout, deterministic=not module.has_rng("dropout"))(x)


def _shortcut(module, x):
    if x.shape[-1] == module.features:
        return x.astype(module.dtype)
    return Conv(module.features, 1, dtype=module.dtype, name="conv_shortcut")(x)
