"""Diffusion inside a linear subspace: what is drawn and what is predicted is projected into it.

A Gaussian's projection is the standard Gaussian of the subspace, and all that a sampler does is
linear, so that the same tables hold there: data, first x, noise and prediction are projected, and
x once more after each row (`keep` of `sample`) against the rounding that adds up.
"""

import jax.numpy as jnp

from sdjax.diffusion.noise import independent_noise


def without_mean(x, mask=None, *, axis=1, channels=None):
    """x with the mean over an axis taken away, and 0 where it is masked: an orthogonal projection.

    Args:
      x: [batch, …, C].
      mask: what counts, 1 or 0, of a shape that spreads to that of x, with a last axis of 1; None
        for all.
      axis: the one that the mean is taken over.
      channels: how many of the first of the C lose their mean; None for all.

    Returns:
      Like x, in its dtype.
    """
    mask = jnp.ones((), x.dtype) if mask is None else mask.astype(x.dtype)
    x = x * mask
    counted = jnp.broadcast_to(mask, (*x.shape[:-1], 1)).sum(axis, keepdims=True)
    mean = x.sum(axis, keepdims=True) / jnp.maximum(counted, 1)
    if channels is not None:
        mean = jnp.where(jnp.arange(x.shape[-1]) < channels, mean, 0)
    return x - mean * mask


def projected_noise(project, noise=independent_noise):
    """A `noise` of `sample` that is drawn by another and then projected.

    project: function of an array [batch, …] to one like it.
    """
    return lambda keys, index, row, like: project(noise(keys, index, row, like))
