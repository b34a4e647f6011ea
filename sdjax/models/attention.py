"""The one attention function of the project, and attention as a module with diffusers' names."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models import attention_kernels as kernels
from sdjax.models.layers import Dense, zeros_init
from sdjax.models.norms import GroupNorm

LONG = 1024


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    """softmax(scale · q·kᵀ)·v over the keys that may be seen, with the softmax in float32.

    q [B, Lq, H, D], k and v [B, Lk, H, D] of one dtype; mask bool, broadcast to [B, H, Lq, Lk],
    True where a query may look; causal hides later keys; scale defaults to 1/√D.
    Returns [B, Lq, H, D] in q's dtype.

    The way it is computed depends on shape, dtype and platform only. From LONG·LONG scores a head
    on, no score matrix is ever whole: cuDNN on GPUs and a Pallas kernel on TPUs where they accept
    the shape, chunks of queries otherwise.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    platform = kernels.platform()
    if mask is None and platform == "gpu" and kernels.cudnn_accepts(q, k):
        return kernels.cudnn(q, k, v, causal, scale)
    if q.shape[1] * k.shape[1] < LONG * LONG:
        return kernels.whole(q, k, v, mask, causal, scale)
    if mask is None and platform == "tpu" and kernels.splash_accepts(q, k):
        return kernels.splash(q, k, v, causal, scale)
    return kernels.chunked(q, k, v, mask, causal, scale, together=platform != "cpu")


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

    Where the collection "references" holds other keys and values [B, M, heads · head_dim] with a
    scale [B] each as `seen`, what the queries find there is added, scaled (arXiv 2308.06721).
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
        q = project("to_q", x)
        y = attend(q, project("to_k", source), project("to_v", source))
        if self.has_variable("references", "seen"):
            for keys, values, scale in self.get_variable("references", "seen"):
                shape = (*keys.shape[:2], self.heads, self.head_dim)
                keys, values = (part.reshape(shape).astype(self.dtype) for part in (keys, values))
                scale = scale.reshape(-1, 1, 1, 1).astype(self.dtype)
                y = y + scale * attend(q, keys, values)
        y = y.reshape(*y.shape[:-2], inner)
        init = {"kernel_init": zeros_init} if self.residual else {}
        y = Dense(inputs.shape[-1], dtype=self.dtype, name="to_out.0", **init)(y)
        y = y.reshape(inputs.shape)
        return y + inputs if self.residual else y
