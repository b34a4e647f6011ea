"""What a network predicts, x_0, ε, v or the score, and each of them from any other.

With x_t = α·x_0 + σ·ε, α = √ᾱ_t and σ = √(1 − ᾱ_t):

    v = α·ε − σ·x_0  (Salimans & Ho 2022, arXiv 2202.00512)      score = ∇ log q(x_t | x_0) = −ε/σ

All are linear in x_t and the prediction, so x_0 = p·x_t + q·prediction and
ε = e·x_t + f·prediction with coefficients that depend on the timestep alone.
"""

import functools

import jax.numpy as jnp

from sdjax.diffusion.schedules import Schedule
from sdjax.errors import SdjaxError

PREDICTIONS = ("x_0", "epsilon", "v_prediction", "score")


def prediction_name(name):
    """The name used here; "sample" is what diffusers calls x_0."""
    name = "x_0" if name == "sample" else name
    if name not in PREDICTIONS:
        raise SdjaxError(f"unknown prediction {name!r}: expected one of {', '.join(PREDICTIONS)}")
    return name


def prediction_coefficients(name, alpha, sigma):
    """(p, q, e, f) with x_0 = p·x_t + q·prediction and ε = e·x_t + f·prediction.

    Args:
      name: what is predicted.
      alpha, sigma: √ᾱ and √(1 − ᾱ), arrays of NumPy or JAX of any shape.
    """
    zero, one = 0 * alpha, 0 * alpha + 1
    match prediction_name(name):
        case "x_0":
            return zero, one, 1 / sigma, -alpha / sigma
        case "epsilon":
            return 1 / alpha, -sigma / alpha, zero, one
        case "v_prediction":
            return alpha, -sigma, sigma, alpha
        case "score":
            return 1 / alpha, sigma**2 / alpha, zero, -sigma


def signal_and_noise(schedule, t, like):
    """√ᾱ_t and √(1 − ᾱ_t), shaped to multiply an array like `like`.

    Args:
      schedule: a `Schedule`.
      t: int, scalar or [batch].
      like: the array whose leading axis is the batch where `t` is a vector.
    """
    return (
        take(schedule.sqrt_alphas_cumprod, t, like),
        take(schedule.sqrt_one_minus_alphas_cumprod, t, like),
    )


def take(table, t, like):
    """table[t] with trailing axes of one, so that it broadcasts against `like`."""
    values = jnp.asarray(table)[jnp.asarray(t)]
    return values.reshape(values.shape + (1,) * (jnp.ndim(like) - values.ndim))


_ONCE = ("prediction", "x_t", "t", "schedule", "source", "target")


def _schedule_first(function):
    """`function` (schedule, prediction, x_t, t, …), which once had its schedule after t."""

    @functools.wraps(function)
    def in_either_order(*arguments, **named):
        once = dict(zip(_ONCE, arguments, strict=False))
        if len(arguments) in range(1, 7) and isinstance((once | named).get("schedule"), Schedule):
            return function(**once, **named)
        return function(*arguments, **named)

    return in_either_order


@_schedule_first
def convert_prediction(schedule, prediction, x_t, t, source, target):
    """A prediction of one kind from a prediction of another.

    The order (prediction, x_t, t, schedule, …) of earlier versions is understood as well.

    Args:
      schedule: a `Schedule`.
      prediction: [batch, ...], of the kind `source`.
      x_t: [batch, ...], the noisy input it was made for.
      t: int, scalar or [batch].
      source, target: "x_0" (or "sample"), "epsilon", "v_prediction" or "score".

    Returns:
      [batch, ...], of the kind `target`.
    """
    source, target = prediction_name(source), prediction_name(target)
    if source == target:
        return prediction
    alpha, sigma = signal_and_noise(schedule, t, x_t)
    p, q, e, f = prediction_coefficients(source, alpha, sigma)
    match target:
        case "x_0":
            return p * x_t + q * prediction
        case "epsilon":
            return e * x_t + f * prediction
        case "v_prediction":
            return (alpha * e - sigma * p) * x_t + (alpha * f - sigma * q) * prediction
        case "score":
            return -(e * x_t + f * prediction) / sigma
