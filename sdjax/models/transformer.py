"""The spatial transformer of text-conditional U-Nets (arXiv 2112.10752)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.attention import Attention
from sdjax.models.layers import Conv, Dense, gelu, zeros_init
from sdjax.models.norms import GroupNorm, LayerNorm


class GEGLU(nn.Module):
    """x·GELU(gate) of one projection (arXiv 2002.05202). [..., C] -> [..., features]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = Dense(2 * self.features, dtype=self.dtype, name="proj")(x)
        return _gated(*jnp.split(h, 2, axis=-1))


@jax.checkpoint
def _gated(x, gate):
    """Keeps its arguments for the backward pass, and not what it computes on the way."""
    return x * gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. [..., C] -> [..., C]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = GEGLU(4 * x.shape[-1], dtype=self.dtype, name="net.0")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="net.2")(h)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised first and added.

    x [B, L, C], context [B, M, D]; returns [B, L, C]. With `only_cross_attention` the first
    attention looks at the context too.
    """

    heads: int
    only_cross_attention: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, context):
        def norm(name):
            return LayerNorm(dtype=self.dtype, name=name)(x)

        def attend(name, value, source):
            head_dim = x.shape[-1] // self.heads
            return Attention(self.heads, head_dim, dtype=self.dtype, name=name)(value, source)

        x = x + attend("attn1", norm("norm1"), context if self.only_cross_attention else None)
        x = x + attend("attn2", norm("norm2"), context)
        return x + FeedForward(dtype=self.dtype, name="ff")(norm("norm3"))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of x [B, H, W, C] with context [B, M, D]; adds to x."""

    heads: int
    layers: int = 1
    groups: int = 32
    linear_projection: bool = False
    only_cross_attention: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, context):
        batch, height, width, channels = x.shape

        def project(name, value, **init):
            if self.linear_projection:
                return Dense(channels, dtype=self.dtype, name=name, **init)(value)
            return Conv(channels, 1, dtype=self.dtype, name=name, **init)(value)

        h = GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="norm")(x)
        h = project("proj_in", h).reshape(batch, height * width, channels)
        for i in range(self.layers):
            block = TransformerBlock(
                self.heads, self.only_cross_attention, self.dtype, name=f"transformer_blocks.{i}"
            )
            h = block(h, context)
        h = h.reshape(batch, height, width, channels)
        return x + project("proj_out", h, kernel_init=zeros_init)
