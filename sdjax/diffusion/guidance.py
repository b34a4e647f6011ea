"""Guidance: functions that combine predictions, of any kind (ε, v or x_0).

Predictions are [batch, ...]. Scales may be numbers or [batch], and may be traced.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def classifier_free_guidance(conditional, unconditional, scale, rescale=0.0):
    """Ho & Salimans 2022 (arXiv 2207.12598), rescaled as in arXiv 2305.08891, section 3.4.

    A negative prompt takes the place of the unconditional prediction, a weaker model's prediction
    makes it autoguidance (Karras et al. 2024, arXiv 2406.02507).

    Args:
      scale: 1 is the conditional prediction.
      rescale: 0 … 1, how far the standard deviation is brought back to the conditional one's.
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


def interval_scale(t, scale, low, high):
    """`scale` for timesteps low < t ≤ high, and 1 (no guidance) for the others.

    Kynkäänniemi et al. 2024 (arXiv 2404.07724): neither the noisiest nor the last steps gain.
    """
    return jnp.where((t > low) & (t <= high), scale, 1.0)


def composed_guidance(conditionals, unconditional, weights):
    """Several prompts at once: u + Σ wₖ·(cₖ − u) (Liu et al. 2022, arXiv 2206.01714).

    Args:
      conditionals: [prompts, batch, ...].
      weights: [prompts], or [prompts, batch]; a negative one steers away.
    """
    weights = jnp.asarray(weights)
    weights = weights.reshape(weights.shape + (1,) * (conditionals.ndim - weights.ndim))
    return unconditional + (weights * (conditionals - unconditional)).sum(axis=0)


def instruct_pix2pix_guidance(full, image_only, unconditional, text_scale, image_scale):
    """Two conditions with a scale each (Brooks et al. 2022, arXiv 2211.09800, equation 3).

    Args:
      full: prediction with instruction and image.
      image_only: with the image and no instruction.
      unconditional: with neither.
    """
    return (
        unconditional
        + per_item(image_scale, full) * (image_only - unconditional)
        + per_item(text_scale, full) * (full - image_only)
    )


def perturbed_attention_guidance(conditional, unconditional, perturbed, scale, perturbed_scale):
    """Guidance away from a prediction with its self-attention replaced by the identity.

    PAG (Ahn et al. 2024, arXiv 2403.17377). Self-attention guidance (arXiv 2210.00939) is the same
    with the prediction for a blurred input.
    """
    return (
        unconditional
        + per_item(scale, conditional) * (conditional - unconditional)
        + per_item(perturbed_scale, conditional) * (conditional - perturbed)
    )


def cfg_zero_star(conditional, unconditional, scale, silent=False):
    """Guidance with the unconditional prediction scaled to fit (Fan et al. 2025, arXiv 2503.18886).

        u* = s·u,  s = ⟨c, u⟩/‖u‖²;      u* + scale·(c − u*)

    Args:
      silent: give zero, as the paper does in the first steps; a bool, may be traced.
    """
    size = jnp.maximum(_inner(unconditional, unconditional), 1e-8)
    fit = _inner(conditional, unconditional) / size
    guided = classifier_free_guidance(conditional, fit * unconditional, scale)
    return jnp.where(silent, 0.0, guided)


class Momentum(NamedTuple):
    """What adaptive projected guidance carries from step to step: a running difference."""

    average: jax.Array


def adaptive_projected_guidance(
    conditional, unconditional, scale, momentum=None, eta=0.0, radius=0.0, beta=-0.5
):
    """APG (Sadat et al. 2024, arXiv 2410.02416, algorithm 1), best on predictions of x_0.

    The part of c − u parallel to c, which oversaturates, is kept by the share `eta` only.

    Args:
      scale: 1 is the conditional prediction.
      momentum: the `Momentum` of the step before, or None for none.
      eta: share of the parallel part.
      radius: largest norm of the difference; 0 for none.
      beta: weight of the running difference.

    Returns:
      The guided prediction; with `momentum` a pair of it and the next `Momentum`, to be carried in
      the state of `sample`.
    """
    difference = conditional - unconditional
    if momentum is not None:
        difference = difference + beta * momentum.average
        momentum = Momentum(difference)
    norm = jnp.sqrt(_inner(difference, difference))
    limit = per_item(radius, difference)
    shrink = jnp.where(limit > 0, jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12)), 1.0)
    difference = difference * shrink
    share = _inner(difference, conditional) / jnp.maximum(_inner(conditional, conditional), 1e-12)
    parallel = share * conditional
    update = difference - parallel + per_item(eta, difference) * parallel
    guided = conditional + (per_item(scale, difference) - 1) * update
    return guided if momentum is None else (guided, momentum)


def guided(predict, conditional, unconditional, scale, combine=classifier_free_guidance):
    """A `denoise` for `sample` that evaluates twice only where there is guidance.

    Both predictions come from one evaluation of twice the batch. At a scale of 1, or outside a
    guidance interval, the network runs on the conditional half alone.

    Args:
      predict: function of (x [n, ...], t [], condition, a tree of arrays [n, ...]).
      conditional, unconditional: the conditions, trees of arrays [batch, ...].
      scale: a number, [] or [batch]; or a function of t that gives one.
      combine: function of (conditional, unconditional, scale) that gives the prediction.
    """
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), conditional, unconditional)

    def denoise(x, t):
        here = jnp.asarray(scale(t) if callable(scale) else scale)

        def twice(x):
            prediction = predict(jnp.concatenate([x, x]), t, both)
            return combine(*jnp.split(prediction, 2), here)

        return jax.lax.cond(jnp.all(here == 1), lambda x: predict(x, t, conditional), twice, x)

    return denoise


def per_item(value, like):
    """A scalar or [batch] value shaped to multiply `like`."""
    if not isinstance(value, np.ndarray | np.generic):  # those stay on the host, with what is there
        value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value


def _inner(a, b):
    """⟨a, b⟩ of each item, shaped to multiply it."""
    return (a * b).sum(axis=tuple(range(1, a.ndim)), keepdims=True)
