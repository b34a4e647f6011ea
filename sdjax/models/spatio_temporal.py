"""Blocks of Stable Video Diffusion (arXiv 2311.15127): those of pictures, each mixed with one that
looks along the frames of a clip.

The frames of a clip follow each other in the batch, so that x is [B·frames, H, W, C] everywhere.
"""

from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.attention import Attention
from sdjax.models.blocks import ResnetBlock
from sdjax.models.convolution import convolve
from sdjax.models.embeddings import TimestepEmbedding, sinusoidal_embedding
from sdjax.models.layers import Dense, default_init, zeros_init
from sdjax.models.norms import GroupNorm, LayerNorm
from sdjax.models.transformer import FeedForward, TransformerBlock


class TimeConv(nn.Module):
    """Convolution over three frames at each place. x [B·frames, H, W, in] -> [..., features].

    Its kernel is that of a three-dimensional one, [3, 1, 1, in, features].
    """

    features: int
    frames: int
    dtype: jax.typing.DTypeLike = jnp.float32
    kernel_init: Callable = default_init

    @nn.compact
    def __call__(self, x):
        shape = (3, 1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", zeros_init, (self.features,), jnp.float32).astype(self.dtype)
        clips = x.astype(self.dtype).reshape(-1, self.frames, x.shape[1] * x.shape[2], x.shape[3])
        y = convolve(clips, kernel[:, 0], ((1, 1), (0, 0))) + bias
        return y.reshape(*x.shape[:-1], self.features)


class TimeResnetBlock(nn.Module):
    """A residual block along the frames, whose norms are those of all frames of a clip.

    x [B·frames, H, W, C], emb [B·frames, E] after its activation, or None; returns x's shape.
    """

    frames: int
    groups: int = 32
    epsilon: float = 1e-5
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, emb=None):
        def norm(name, x):
            return GroupNorm(
                self.groups, self.epsilon, True, self.frames, dtype=self.dtype, name=name
            )(x)

        def conv(name, x, **init):
            return TimeConv(x.shape[-1], self.frames, self.dtype, name=name, **init)(x)

        h = conv("conv1", norm("norm1", x))
        if emb is not None:
            h = h + Dense(x.shape[-1], dtype=self.dtype, name="time_emb_proj")(emb)[:, None, None]
        h = conv("conv2", norm("norm2", h), kernel_init=zeros_init)
        return x.astype(self.dtype) + h


class Mix(nn.Module):
    """σ(m) of one and 1 - σ(m) of the other, m being learned."""

    start: float = 0.5

    @nn.compact
    def __call__(self, one, other):
        start = nn.initializers.constant(self.start)
        share = nn.sigmoid(self.param("mix_factor", start, (1,), jnp.float32)).astype(one.dtype)
        return share * one + (1 - share) * other


class SpatioTemporalResnet(nn.Module):
    """A residual block of each frame, mixed with one along the frames after it.

    x [B·frames, H, W, in], emb [B·frames, E] after its activation, or None; returns
    [B·frames, H, W, features]. `of_decoder`: with another epsilon in time, and σ(m), half at first,
    the share of the block along the frames, not of that of each frame.
    """

    features: int
    frames: int
    groups: int = 32
    epsilon: float = 1e-5
    of_decoder: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x, emb=None):
        each = ResnetBlock(
            self.features, self.groups, self.epsilon, dtype=self.dtype, tile=self.tile,
            name="spatial_res_block",
        )(x, emb)  # fmt: skip
        epsilon = 1e-5 if self.of_decoder else self.epsilon
        along = TimeResnetBlock(
            self.frames, self.groups, epsilon, self.dtype, name="temporal_res_block"
        )(each, emb)
        mix = Mix(0.0 if self.of_decoder else 0.5, name="time_mixer")
        return mix(along, each) if self.of_decoder else mix(each, along)


class TimeTransformerBlock(nn.Module):
    """Feed-forward, attention over the frames, to the context, and feed-forward, each normalised
    first and added.

    x [B·frames, L, C], context [B, M, D] of the clips; returns x's shape.
    """

    heads: int
    frames: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, context):
        length, channels = x.shape[1:]

        def norm(name):
            return LayerNorm(dtype=self.dtype, name=name)(h)

        def attend(name, value, source=None):
            head_dim = channels // self.heads
            return Attention(self.heads, head_dim, dtype=self.dtype, name=name)(value, source)

        h = x.reshape(-1, self.frames, length, channels).swapaxes(1, 2)
        h = h.reshape(-1, self.frames, channels)
        h = h + FeedForward(dtype=self.dtype, name="ff_in")(norm("norm_in"))
        h = h + attend("attn1", norm("norm1"))
        # All places and frames of a clip look at the same context.
        asked = norm("norm2").reshape(len(context), -1, channels)
        h = h + attend("attn2", asked, context).reshape(h.shape)
        h = h + FeedForward(dtype=self.dtype, name="ff")(norm("norm3"))
        h = h.reshape(-1, length, self.frames, channels).swapaxes(1, 2)
        return h.reshape(x.shape)


class SpatioTemporalTransformer(nn.Module):
    """Transformer blocks over the places of each frame, each mixed with one over the frames.

    x [B·frames, H, W, C], context [B·frames, M, D]; adds to x. Along the frames the context is that
    of the first.
    """

    heads: int
    frames: int
    layers: int = 1
    groups: int = 32
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, context):
        count, height, width, channels = x.shape
        frames, dtype = self.frames, self.dtype
        h = GroupNorm(self.groups, 1e-6, dtype=dtype, name="norm")(x)
        h = h.reshape(count, height * width, channels)
        h = Dense(channels, dtype=dtype, name="proj_in")(h)
        numbers = sinusoidal_embedding(jnp.arange(frames), channels)
        places = TimestepEmbedding(4 * channels, dtype, channels, name="time_pos_embed")(numbers)
        places = jnp.tile(places, (count // frames, 1))[:, None]
        mix = Mix(name="time_mixer")
        for i in range(self.layers):
            h = TransformerBlock(self.heads, dtype=dtype, name=f"transformer_blocks.{i}")(
                h, context
            )
            block = TimeTransformerBlock(
                self.heads, frames, dtype, name=f"temporal_transformer_blocks.{i}"
            )
            h = mix(h, block(h + places, context[::frames]))
        h = Dense(channels, dtype=dtype, kernel_init=zeros_init, name="proj_out")(h)
        return x + h.reshape(x.shape)
