"""Embeddings of timesteps, classes and other numbers that condition a whole network."""

import math

import flax.linen as nn
import jax.numpy as jnp

from sdjax.models.attention import attention
from sdjax.models.layers import Dense, default_init
from sdjax.models.norms import LayerNorm


def sinusoidal_embedding(values, features, *, cosine_first=True, frequency_shift=0.0):
    """Sines and cosines of `values` at geometric frequencies from 1 to 1/10000 (arXiv 1706.03762).

    values float [...]; returns float32 [..., features], features even. `cosine_first` and
    `frequency_shift` are diffusers' flip_sin_to_cos and freq_shift: Stable Diffusion has True
    and 0, the original DDPM code False and 1.
    """
    half = features // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - frequency_shift)
    angles = jnp.asarray(values, jnp.float32)[..., None] * jnp.exp(-math.log(10000.0) * exponents)
    parts = (jnp.cos(angles), jnp.sin(angles)) if cosine_first else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts, axis=-1)


class TimestepEmbedding(nn.Module):
    """Two dense layers with SiLU between them. x [B, in] -> [B, features] in `dtype`, or of another
    width where `out` gives one.

    `condition` [B, D] is projected without bias and added to x, as a distilled network takes its
    guidance scale (arXiv 2310.04378).
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    out: int | None = None

    @nn.compact
    def __call__(self, x, condition=None):
        x = x.astype(self.dtype)
        if condition is not None:
            x = x + Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj")(condition)
        x = nn.silu(Dense(self.features, dtype=self.dtype, name="linear_1")(x))
        return Dense(self.out or self.features, dtype=self.dtype, name="linear_2")(x)


class AttentionPooling(nn.Module):
    """One vector of a sequence: its mean looks at itself and at every token. [B, L, C] -> [B, C]."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]

        def project(name, value):
            y = Dense(channels, dtype=self.dtype, name=name)(value)
            return y.reshape(*y.shape[:-1], self.heads, channels // self.heads)

        init = nn.initializers.normal(channels**-0.5)
        position = self.param("positional_embedding", init, (1, channels), jnp.float32)
        mean = x.mean(1, keepdims=True) + position.astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1)
        y = attention(project("q_proj", mean), project("k_proj", x), project("v_proj", x))
        return y.reshape(x.shape[0], channels)


class TextTimeEmbedding(nn.Module):
    """The pooled text, to be added to the time embedding (DeepFloyd IF). [B, L, C] -> [B, features].

    So the text reaches every residual block, where cross-attention reaches the levels that have it.
    """

    features: int
    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = AttentionPooling(self.heads, self.dtype, name="pool")(x)
        x = Dense(self.features, dtype=self.dtype, name="proj")(x)
        return LayerNorm(dtype=self.dtype, name="norm2")(x)


class Projection(nn.Module):
    """One dense layer, x [B, in] -> [B, features]. Its parameter is a table, [features, in], as the
    names of networks have the weight of whatever is called an embedding."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.features, x.shape[-1])
        table = self.param("embedding", _turned, shape, jnp.float32).astype(self.dtype)
        y = jnp.dot(x.astype(self.dtype), table.T, preferred_element_type=jnp.float32)
        y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y.astype(self.dtype)


def _turned(key, shape, dtype):
    """A dense layer's initial kernel as a table."""
    return default_init(key, shape[::-1], dtype).T
