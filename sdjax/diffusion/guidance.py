"""Guidance: functions that combine predictions of any kind (ε, v or x_0)."""

import jax.numpy as jnp


def classifier_free_guidance(conditional, unconditional, scale, rescale=0.0):
    """Ho & Salimans 2022 (arXiv 2207.12598), with the rescaling of arXiv 2305.08891, section 3.4.

    Args:
      conditional, unconditional: [batch, ...] predictions.
      scale: 1 is the conditional prediction; a scalar or [batch], may be traced.
      rescale: 0 … 1, how far the standard deviation is brought back to the conditional one's.

    Returns:
      [batch, ...].
    """
    guided = unconditional + per_item(scale, conditional) * (conditional - unconditional)
    return rescaled(guided, conditional, rescale)


def rescaled(guided, conditional, rescale):
    """`guided` with its standard deviation moved by the share `rescale` towards `conditional`'s."""
    axes = tuple(range(1, guided.ndim))
    wanted = jnp.std(conditional, axis=axes, keepdims=True)
    have = jnp.std(guided, axis=axes, keepdims=True)
    ratio = wanted / jnp.where(have > 0, have, 1)
    rescale = per_item(rescale, guided)
    return guided * (rescale * ratio + 1 - rescale)


def per_item(value, like):
    """A scalar or [batch] value shaped to multiply `like`."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value
