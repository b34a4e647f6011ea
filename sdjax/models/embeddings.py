"""Embeddings of timesteps, classes and other numbers that condition a whole network."""

import math

import flax.linen as nn
import jax.numpy as jnp

from sdjax.models.layers import Dense


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
    """Two dense layers with SiLU between them. x [B, in] -> [B, features] in `dtype`.

    `condition` [B, D] is projected without bias and added to x, as a distilled network takes its
    guidance scale (arXiv 2310.04378).
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, condition=None):
        x = x.astype(self.dtype)
        if condition is not None:
            x = x + Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj")(condition)
        x = nn.silu(Dense(self.features, dtype=self.dtype, name="linear_1")(x))
        return Dense(self.features, dtype=self.dtype, name="linear_2")(x)
