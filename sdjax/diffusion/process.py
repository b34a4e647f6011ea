"""The forward process and its posterior (Ho et al. 2020, arXiv 2006.11239, section 2)."""

import jax.numpy as jnp

from sdjax.diffusion.predictions import signal_and_noise, take


def forward_step(schedule, x_previous, noise, t):
    """One noising step: a sample of q(x_t | x_{t−1}) = N(√α_t · x_{t−1}, β_t I).

    Args:
      schedule: a `Schedule`.
      x_previous: [batch, ...], x_{t−1}; for t = 0 this is x_0.
      noise: standard normal, shaped like `x_previous`.
      t: int, scalar or [batch].
    """
    alpha, beta = take(schedule.alphas, t, x_previous), take(schedule.betas, t, x_previous)
    return jnp.sqrt(alpha) * x_previous + jnp.sqrt(beta) * noise


def add_noise(schedule, x_0, noise, t):
    """Any number of steps at once: a sample of q(x_t | x_0) = N(√ᾱ_t · x_0, (1 − ᾱ_t) I).

    Args:
      schedule: a `Schedule`.
      x_0: [batch, ...].
      noise: standard normal, shaped like `x_0`.
      t: int, scalar or [batch], 0 … T − 1.
    """
    alpha, sigma = signal_and_noise(schedule, t, x_0)
    return alpha * x_0 + sigma * noise


def posterior(schedule, x_0, x_t, t):
    """Mean, variance and log-variance of q(x_{t−1} | x_t, x_0), equations 6 and 7.

    Returns:
      (mean [batch, ...], variance, log_variance); the last two broadcast against the mean. At
      t = 0 the variance is 0 and the log-variance that of t = 1.
    """
    mean = (
        take(schedule.posterior_mean_coef_x_0, t, x_0) * x_0
        + take(schedule.posterior_mean_coef_x_t, t, x_t) * x_t
    )
    return (
        mean,
        take(schedule.posterior_variance, t, x_t),
        take(schedule.posterior_log_variance, t, x_t),
    )
