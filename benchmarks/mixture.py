"""A mixture of Gaussians in one dimension, whose diffusion is known in closed form.

At x = α·x_0 + σ·ε every component stays Gaussian, N(α·m, α²s² + σ²), so that the best prediction is
a formula; and because a flow in one dimension keeps the order of its points, the probability-flow
ODE carries a quantile of one level to the same quantile of another: its exact solution.
"""

import jax
import jax.numpy as jnp
import numpy as np

WEIGHTS = np.array([0.35, 0.25, 0.4])
MEANS = np.array([-1.2, 0.1, 0.9])
DEVIATIONS = np.array([0.25, 0.15, 0.35])


def _components(alpha, sigma):
    return alpha * MEANS, jnp.sqrt((alpha * DEVIATIONS) ** 2 + sigma**2)


def denoised(x, alpha, sigma):
    """E[x_0 | x]: the mean of the components' posteriors, weighted by their likelihoods."""
    means, deviations = _components(alpha, sigma)
    z = (x[..., None] - means) / deviations
    share = jax.nn.softmax(jnp.log(WEIGHTS / deviations) - z**2 / 2)
    posterior = MEANS + alpha * DEVIATIONS**2 / deviations * z
    return (share * posterior).sum(-1)


def cdf(x, alpha, sigma):
    """P(x_t ≤ x)."""
    means, deviations = _components(alpha, sigma)
    return (WEIGHTS * jax.scipy.stats.norm.cdf((x[..., None] - means) / deviations)).sum(-1)


def quantile(p, alpha, sigma):
    """The x with cdf(x) = p, by bisection to the last digit."""
    low, high = jnp.full_like(p, -60.0), jnp.full_like(p, 60.0)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = cdf(middle, alpha, sigma) < p
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 70, halve, (low, high))
    return (low + high) / 2


def level_of(table):
    """A function of timesteps that gives (α, σ) of unit variance, from σ/α of the timesteps [T]."""
    log_table = jnp.log(jnp.asarray(np.asarray(table, np.float32)).astype(float))

    def level(t):
        ratio = jnp.exp(jnp.interp(t, jnp.arange(len(log_table), dtype=float), log_table))
        alpha = 1 / jnp.sqrt(1 + ratio**2)
        return alpha, ratio * alpha

    return level


def preconditioned(target, level, d=0.5, boundary=0.0):
    """A network F of (c_in·x, t) with x_0 = c_skip·x + c_out·F = target(x, σ), at x = x_0 + σ·ε.

    Karras et al. 2022 (arXiv 2206.00364, equation 7); `boundary` as in consistency models.

    Args:
      target: function of (x, σ).
      level: function of t that gives σ.
    """

    def denoise(x, t):
        sigma = level(t)
        above, size = sigma - boundary, jnp.hypot(sigma, d)
        x = x * size
        skip, out = d**2 / (above**2 + d**2), above * d / size
        return (target(x, sigma) - skip * x) / out

    return denoise


def network(level, prediction="epsilon"):
    """The perfect network: a function of (x, t) that gives its prediction at level(t)."""

    def denoise(x, t):
        alpha, sigma = level(t)
        x_0 = denoised(x, alpha, sigma)
        match prediction:
            case "x_0":
                return x_0
            case "epsilon":
                return (x - alpha * x_0) / sigma
            case "v_prediction":
                return (alpha * x - x_0) / sigma

    return denoise
