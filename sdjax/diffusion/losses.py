"""Training losses and their weights over the timesteps."""

import jax.numpy as jnp

from sdjax.diffusion.predictions import prediction_name
from sdjax.errors import SdjaxError


def training_loss(prediction, target, kind="mse", delta=1.0, mask=None):
    """The distance of prediction and target, a number for each item of the batch.

    Args:
      prediction, target: [batch, ...]; compared in float32.
      kind: "mse", "l1", "huber" (½e² up to |e| = delta, then delta·(|e| − ½delta)) or
        "pseudo_huber" (√(e² + delta²) − delta, as consistency models use it, arXiv 2310.14189).
      delta: where the Huber losses turn from quadratic to linear.
      mask: what each distance counts, of a shape that spreads to that of prediction; None for 1.

    Returns:
      float32[batch], the mean over the other axes, all of them counted where there is a mask too.
    """
    if prediction.shape != target.shape:
        raise SdjaxError(f"prediction {prediction.shape} and target {target.shape} differ in shape")
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    size = jnp.abs(error)
    match kind:
        case "mse":
            loss = error**2
        case "l1":
            loss = size
        case "huber":
            loss = jnp.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))
        case "pseudo_huber":
            loss = jnp.sqrt(error**2 + delta**2) - delta
        case _:
            raise SdjaxError(f"unknown loss {kind!r}: expected mse, l1, huber or pseudo_huber")
    loss = loss if mask is None else loss * mask
    return loss.mean(axis=tuple(range(1, loss.ndim)))


def loss_weight(schedule, t, prediction_type, weighting="uniform", gamma=None, k=1.0):
    """The weight of a timestep in the loss of a given prediction type.

    The same misjudged picture is a squared error snr times as large in ε as in x_0, and snr + 1
    times as large in v, so that one weighting has a form for each type.

    Args:
      schedule: a `Schedule`; snr = ᾱ/(1 − ᾱ).
      t: int[batch].
      prediction_type: "x_0", "epsilon" or "v_prediction".
      weighting: "uniform" (1), "min_snr" (min(snr, gamma) on x_0: Hang et al. 2023, arXiv
        2303.09556) or "p2" (1/(k + snr)^gamma on ε: Choi et al. 2022, arXiv 2204.00227).
      gamma: 5 for min_snr and 1 for p2 unless given.

    Returns:
      float32[batch].
    """
    name = prediction_name(prediction_type)
    if name == "score":
        raise SdjaxError("loss_weight knows x_0, epsilon and v_prediction, got 'score'")
    snr = jnp.exp(schedule.log_snr[t])
    match weighting:
        case "uniform":
            return jnp.ones_like(snr)
        case "min_snr":
            gamma = 5.0 if gamma is None else gamma
            # min(snr, γ)/snr written so that it holds at snr = 0 too.
            on_epsilon = gamma / jnp.maximum(snr, gamma)
        case "p2":
            on_epsilon = 1 / (k + snr) ** (1.0 if gamma is None else gamma)
        case _:
            raise SdjaxError(f"unknown weighting {weighting!r}: expected uniform, min_snr or p2")
    factor = {"epsilon": 1.0, "x_0": snr, "v_prediction": snr / (snr + 1)}[name]
    return on_epsilon * factor
