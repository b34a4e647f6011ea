"""The variational bound in bits a dimension, and learned variances.

Ho et al. 2020 (arXiv 2006.11239), equation 5: L = L_T + Σ L_{t−1} + L_0, here divided by the number
of dimensions and by log 2. Nichol & Dhariwal 2021 (arXiv 2102.09672) learn the variance.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.losses import training_loss
from sdjax.diffusion.predictions import convert_prediction, signal_and_noise, take
from sdjax.diffusion.process import add_noise, posterior
from sdjax.errors import SdjaxError


def normal_kl(mean_1, log_variance_1, mean_2, log_variance_2):
    """KL(N₁ ‖ N₂) of diagonal Gaussians, elementwise, in nats."""
    return 0.5 * (
        log_variance_2
        - log_variance_1
        + jnp.exp(log_variance_1 - log_variance_2)
        + (mean_1 - mean_2) ** 2 * jnp.exp(-log_variance_2)
        - 1
    )


def discretized_gaussian_log_likelihood(x, mean, log_variance):
    """log P of 8-bit pixels under a Gaussian integrated over each pixel's bin.

    Equation 13 of Ho et al.: the bins are 2/255 wide, the outermost ones without end.

    Args:
      x: [...], the 256 values −1 … 1.
      mean, log_variance: broadcast against x.

    Returns:
      [...], in nats.
    """
    scale, half = jnp.exp(-0.5 * log_variance), 1 / 255
    upper, lower = scale * (x - mean + half), scale * (x - mean - half)
    # Φ(upper) − Φ(lower) in the left tail, where the difference keeps its digits.
    right = upper + lower > 0
    log_high = jax.scipy.stats.norm.logcdf(jnp.where(right, -lower, upper))
    log_low = jax.scipy.stats.norm.logcdf(jnp.where(right, -upper, lower))
    inside = log_high + jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-12)))
    outermost = jnp.where(
        x < -0.999,
        jax.scipy.stats.norm.logcdf(upper),
        jax.scipy.stats.norm.logcdf(-lower),
    )
    return jnp.where(jnp.abs(x) > 0.999, outermost, inside)


def learned_log_variance(schedule, t, fraction):
    """log Σ between the posterior variance (fraction 0) and β (fraction 1), equation 15.

    Args:
      schedule: a `Schedule`.
      t: int, scalar or [batch].
      fraction: [batch, ...]; a network's output v in −1…1 is (v + 1)/2.
    """
    low = take(schedule.posterior_log_variance, t, fraction)
    high = jnp.log(take(schedule.betas, t, fraction))
    return fraction * high + (1 - fraction) * low


def variational_term(
    schedule, prediction, x_0, x_t, t, prediction_type, log_variance=None, clip=None
):
    """One term of the bound: L_{t−1} for t > 0, the KL of the posterior; L_0 at t = 0.

    Args:
      schedule: a `Schedule`.
      prediction: [batch, ...] for x_t, of the kind `prediction_type`.
      x_0: [batch, ...], the 256 values −1 … 1 for the last term to mean bits.
      x_t: [batch, ...].
      t: int[batch].
      log_variance: of the model, [batch, ...]; by default the posterior's.
      clip: bound of the predicted x_0, or None.

    Returns:
      float32[batch], bits a dimension.
    """
    predicted = convert_prediction(schedule, prediction, x_t, t, prediction_type, "x_0")
    if clip is not None:
        predicted = jnp.clip(predicted, -clip, clip)
    true_mean, _, true_log_variance = posterior(schedule, x_0, x_t, t)
    mean, _, default = posterior(schedule, predicted, x_t, t)
    log_variance = default if log_variance is None else log_variance
    kl = _bits(normal_kl(true_mean, true_log_variance, mean, log_variance))
    decoder = _bits(-discretized_gaussian_log_likelihood(x_0, mean, log_variance))
    return jnp.where(t == 0, decoder, kl)


def prior_term(schedule, x_0):
    """L_T: KL(q(x_T | x_0) ‖ N(0, I)) of each item, float32[batch], bits a dimension."""
    alpha, sigma = signal_and_noise(schedule, len(schedule) - 1, x_0)
    return _bits(normal_kl(alpha * x_0, 2 * jnp.log(sigma), 0.0, 0.0))


def variational_bound(denoise, schedule, x_0, key, prediction_type, clip=1.0):
    """The whole bound on −log p(x_0), with one noise sample a term.

    Args:
      denoise: function of (x [batch, ...], t int32[batch]) that gives the prediction, or a pair of
        it and the variance fraction.
      schedule: a `Schedule`.
      x_0: [batch, ...], the 256 values −1 … 1.
      key: random key.
      prediction_type: what is predicted.
      clip: bound of the predicted x_0, or None.

    Returns:
      A dict of float32: "total" [batch], "prior" [batch] and "terms" [batch, T], bits a dimension.
    """

    def term(t):
        steps = jnp.full(x_0.shape[0], t)
        noise = jax.random.normal(jax.random.fold_in(key, t), x_0.shape)
        x_t = add_noise(schedule, x_0, noise, steps)
        output = denoise(x_t, steps)
        prediction, fraction = output if isinstance(output, tuple) else (output, None)
        log_variance = None if fraction is None else learned_log_variance(schedule, steps, fraction)
        return variational_term(
            schedule, prediction, x_0, x_t, steps, prediction_type, log_variance, clip
        )

    terms = jax.lax.map(term, jnp.arange(len(schedule))).T
    prior = prior_term(schedule, x_0)
    return {"total": terms.sum(axis=1) + prior, "prior": prior, "terms": terms}


def hybrid_loss(
    schedule, prediction, fraction, target, x_0, x_t, t, prediction_type, weight=0.001, kind="mse"
):
    """L_simple + weight·L_vlb (arXiv 2102.09672, equation 16), which teaches the variance too.

    The bound's gradient reaches the variance only, not the mean. It is T times its term at t, the
    estimate of the sum over all timesteps where t is drawn evenly.

    Args:
      prediction, fraction: [batch, ...], what the network gives for x_t.
      target: [batch, ...], of the kind `prediction_type`.
      x_0, x_t: [batch, ...].
      t: int[batch].

    Returns:
      float32[batch].
    """
    if fraction is None:
        raise SdjaxError("hybrid_loss needs the variance fraction that the network predicts")
    bound = variational_term(
        schedule,
        jax.lax.stop_gradient(prediction),
        x_0,
        x_t,
        t,
        prediction_type,
        learned_log_variance(schedule, t, fraction),
    )
    return training_loss(prediction, target, kind) + weight * len(schedule) * bound


def _bits(nats):
    return nats.mean(axis=tuple(range(1, nats.ndim))) / np.log(2)
