"""The one attention function of the project, and attention as a module with diffusers' names."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.layers import Dense, GroupNorm, zeros_init

QUERY_CHUNK = 1024


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    """softmax(scale · q·kᵀ + mask)·v, with the softmax in float32.

    q [B, Lq, H, D], k and v [B, Lk, H, D] of one dtype; mask bool, broadcast to [B, H, Lq, Lk],
    True where a query may look; causal hides later keys; scale defaults to 1/√D.
    Returns [B, Lq, H, D] in q's dtype.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    length, keys = q.shape[1], k.shape[1]
    if causal:
        visible = jnp.arange(keys)[None, :] <= jnp.arange(length)[:, None]
        mask = visible[None, None] if mask is None else mask & visible[None, None]
    if length * keys <= QUERY_CHUNK * QUERY_CHUNK or mask is not None:
        return _plain(q, k, v, mask, scale)
    rows = [
        _plain(q[:, i : i + QUERY_CHUNK], k, v, None, scale) for i in range(0, length, QUERY_CHUNK)
    ]
    return jnp.concatenate(rows, axis=1)


def _plain(q, k, v, mask, scale):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)


def linear_attention(q, k, v):
    """Attention whose cost grows with the length, not its square (arXiv 1812.01243).

    q is normalised over its features and k over its positions, so that softmax(q)·(softmax(k)ᵀ·v)
    needs no score matrix. Shapes and dtype as for `attention`; the softmaxes are in float32.
    """
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    q = (jax.nn.softmax(q.astype(jnp.float32), axis=-1) * scale).astype(dtype)
    k = jax.nn.softmax(k.astype(jnp.float32), axis=1).astype(dtype)
    summary = jnp.einsum("bkhd,bkhe->bhde", k, v, preferred_element_type=jnp.float32)
    out = jnp.einsum("bqhd,bhde->bqhe", q, summary.astype(dtype), preferred_element_type=jnp.float32)
    return out.astype(dtype)


class Attention(nn.Module):
    """Multi-head attention under diffusers' names to_q, to_k, to_v, to_out.0.

    x [B, L, C]; context [B, M, D] or None for self-attention. Returns [B, L, C]. With `norm_groups`
    the input is group-normalised first (parameter group_norm), and with `residual` the input is
    added to the result, as the pixel-space U-Net and the autoencoder have it; x may then also be
    an image [B, H, W, C]. `linear` takes `linear_attention`.
    """

    heads: int
    head_dim: int
    qkv_bias: bool = False
    norm_groups: int | None = None
    norm_epsilon: float = 1e-5
    residual: bool = False
    linear: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, context=None):
        inputs = x
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.norm_groups is not None:
            x = GroupNorm(self.norm_groups, self.norm_epsilon, dtype=self.dtype, name="group_norm")(x)
        source = x if context is None else context
        inner = self.heads * self.head_dim

        def project(name, value):
            y = Dense(inner, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(value)
            return y.reshape(*y.shape[:-1], self.heads, self.head_dim)

        attend = linear_attention if self.linear else attention
        y = attend(project("to_q", x), project("to_k", source), project("to_v", source))
        y = y.reshape(*y.shape[:-2], inner)
        init = {"kernel_init": zeros_init} if self.residual else {}
        y = Dense(inputs.shape[-1], dtype=self.dtype, name="to_out.0", **init)(y)
        y = y.reshape(inputs.shape)
        return y + inputs if self.residual else y
