"""Normalisation with float32 statistics, and backward passes that keep little more than the input.

The backward passes are written by hand: derived ones keep several arrays of the input's size and
take longer. They can be differentiated once, in reverse mode.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


def group_norm(x, scale, bias, *, groups, epsilon, silu=False):
    """Group normalisation (arXiv 1803.08494).

    x [B, ..., C]; scale and bias [C] or [B, C] float32. `silu` applies SiLU to the result.
    Returns x's shape and dtype.
    """
    batch, channels = x.shape[0], x.shape[-1]
    scale, bias = (jnp.broadcast_to(p, (batch, channels)) for p in (scale, bias))
    y = _group_norm(x.reshape(batch, -1, channels), scale, bias, groups, epsilon, silu)
    return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm(x, scale, bias, groups, epsilon, silu):
    return _group_norm_forward(x, scale, bias, groups, epsilon, silu)[0]


def _group_norm_forward(x, scale, bias, groups, epsilon, silu):
    """Sums and squared sums are taken about one pixel's group mean, so that a mean that is large
    beside the deviation does not cancel, and fold to one factor and one offset a channel."""
    values = x.astype(jnp.float32)
    origin = _group_mean(values[:, 0], groups)
    centred = values - origin[:, None]
    shift = _group_mean(centred.mean(1), groups)
    variance = _group_mean(jnp.square(centred).mean(1), groups) - jnp.square(shift)
    mean, deviation = origin + shift, jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    y = values * (deviation * scale)[:, None] + (bias - mean * deviation * scale)[:, None]
    y = nn.silu(y) if silu else y
    return y.astype(x.dtype), (x, scale, bias, mean, deviation)


def _group_norm_backward(groups, epsilon, silu, saved, grad):
    x, scale, bias, mean, deviation = saved
    normal = (x.astype(jnp.float32) - mean[:, None]) * deviation[:, None]
    grad = grad.astype(jnp.float32)
    if silu:
        y = normal * scale[:, None] + bias[:, None]
        gate = nn.sigmoid(y)
        grad = grad * (gate + y * gate * (1 - gate))
    d_scale, d_bias = (grad * normal).sum(1), grad.sum(1)
    along = _group_mean(d_scale * scale, groups) / x.shape[1]
    offset = _group_mean(d_bias * scale, groups) / x.shape[1]
    d_x = grad * scale[:, None] - normal * along[:, None] - offset[:, None]
    return (d_x * deviation[:, None]).astype(x.dtype), d_scale, d_bias


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _group_mean(values, groups):
    """[B, C] -> [B, C], every channel the mean of its group."""
    batch, channels = values.shape
    means = values.reshape(batch, groups, -1).mean(-1, keepdims=True)
    return jnp.broadcast_to(means, (batch, groups, channels // groups)).reshape(batch, channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon):
    """Layer normalisation (arXiv 1607.06450) of x [..., C] over its last axis, in x's dtype."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    values = x.astype(jnp.float32)
    mean = values.mean(-1, keepdims=True)
    centred = values - mean
    deviation = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    y = centred * deviation * scale + bias
    return y.astype(x.dtype), (x, scale, mean, deviation)


def _layer_norm_backward(epsilon, saved, grad):
    x, scale, mean, deviation = saved
    normal = (x.astype(jnp.float32) - mean) * deviation
    grad = grad.astype(jnp.float32)
    scaled = grad * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    d_x = (scaled - scaled.mean(-1, keepdims=True) - normal * along) * deviation
    axes = tuple(range(grad.ndim - 1))
    return d_x.astype(x.dtype), (grad * normal).sum(axes), grad.sum(axes)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class GroupNorm(nn.Module):
    """Learned `group_norm` over x [B, ..., C]; the result has x's shape, in `dtype`.

    `modulation` is an optional pair of [B, C] arrays (s, b): the normalised x becomes
    x·(1 + s) + b before the activation (adaptive group normalisation, arXiv 2105.05233).
    `frames` that follow each other in the batch are normalised together; what modulates them must
    be the same for all.
    """

    groups: int = 32
    epsilon: float = 1e-5
    silu: bool = False
    frames: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, modulation=None):
        if self.frames > 1:
            clips = x.reshape(-1, self.frames * x.shape[1], *x.shape[2:])
            if modulation is not None:
                modulation = [m[:: self.frames] for m in modulation]
            return self._normalised(clips, modulation).reshape(x.shape)
        return self._normalised(x, modulation)

    def _normalised(self, x, modulation):
        scale, bias = _affine(self, x.shape[-1])
        if modulation is not None:
            extra_scale, extra_bias = (m.astype(jnp.float32) for m in modulation)
            scale, bias = scale * (1 + extra_scale), bias * (1 + extra_scale) + extra_bias
        return group_norm(
            x.astype(self.dtype), scale, bias, groups=self.groups, epsilon=self.epsilon, silu=self.silu
        )


class LayerNorm(nn.Module):
    """Learned `layer_norm` over the last axis of x [..., C]; the result is in `dtype`."""

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return layer_norm(x.astype(self.dtype), *_affine(self, x.shape[-1]), self.epsilon)


def _affine(module, channels):
    scale = module.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
    return scale, module.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
