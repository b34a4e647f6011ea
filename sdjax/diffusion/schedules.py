"""Noise schedules: how much signal and how much noise is left at each training timestep.

    q(x_t | x_0) = N(√ᾱ_t · x_0, (1 − ᾱ_t) I),   ᾱ_t = Π_{s ≤ t} (1 − β_s)

Every table is computed in float64 and stored as float32, in which it is later used.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.host import on_the_host
from sdjax.errors import SdjaxError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete variance-preserving schedule: float32 tables of length T, a pytree.

    `sigmas` is √((1 − ᾱ)/ᾱ) and `log_snr` is log(ᾱ/(1 − ᾱ)); where ᾱ is zero they are ∞ and −∞.
    The posterior q(x_{t−1} | x_t, x_0) is Gaussian with mean
    `posterior_mean_coef_x_0 · x_0 + posterior_mean_coef_x_t · x_t` (Ho et al. 2020,
    arXiv 2006.11239, equations 6 and 7). Its variance is zero at t = 0, so the first entry of
    `posterior_log_variance` repeats the second one (Nichol & Dhariwal 2021, arXiv 2102.09672).
    """

    betas: jax.Array
    alphas: jax.Array
    alphas_cumprod: jax.Array
    sqrt_alphas_cumprod: jax.Array
    sqrt_one_minus_alphas_cumprod: jax.Array
    sigmas: jax.Array
    log_snr: jax.Array
    posterior_variance: jax.Array
    posterior_log_variance: jax.Array
    posterior_mean_coef_x_0: jax.Array
    posterior_mean_coef_x_t: jax.Array

    def __len__(self):
        return self.betas.shape[-1]


@on_the_host
def schedule_from_betas(betas):
    """The schedule of the given variances.

    Args:
      betas: [T] array-like, 0 < β < 1; the last one may be 1 (zero terminal SNR).

    Returns:
      A `Schedule` of float32[T] tables.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise SdjaxError(f"betas must be a non-empty vector, got shape {betas.shape}")
    if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
        raise SdjaxError(
            f"betas must lie between 0 and 1, got values from {betas.min()} to {betas.max()}"
        )
    alphas = 1 - betas
    return _schedule(betas, alphas, np.cumprod(alphas))


def _schedule(betas, alphas, signal):
    """`signal` is ᾱ; all three are float64."""
    previous = np.append(1.0, signal[:-1])
    noise = 1 - signal
    variance = betas * (1 - previous) / noise
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt(noise / signal)
        log_snr = np.log(signal) - np.log(noise)
    # A schedule of a single step has no second posterior variance to repeat.
    first = variance[1] if len(variance) > 1 else betas[0]
    tables = Schedule(
        betas=betas,
        alphas=alphas,
        alphas_cumprod=signal,
        sqrt_alphas_cumprod=np.sqrt(signal),
        sqrt_one_minus_alphas_cumprod=np.sqrt(noise),
        sigmas=sigmas,
        log_snr=log_snr,
        posterior_variance=variance,
        posterior_log_variance=np.log(np.append(first, variance[1:])),
        posterior_mean_coef_x_0=betas * np.sqrt(previous) / noise,
        posterior_mean_coef_x_t=(1 - previous) * np.sqrt(alphas) / noise,
    )
    with jax.ensure_compile_time_eval():  # constants, where a traced function asks for a schedule
        return jax.tree.map(lambda table: jnp.asarray(table, jnp.float32), tables)


@on_the_host
def linear_schedule(beta_start=1e-4, beta_end=0.02, num_timesteps=1000):
    """β linear in t: DDPM (Ho et al. 2020, section 4)."""
    return schedule_from_betas(np.linspace(beta_start, beta_end, num_timesteps))


@on_the_host
def scaled_linear_schedule(beta_start=0.00085, beta_end=0.012, num_timesteps=1000):
    """√β linear in t: latent diffusion and Stable Diffusion (arXiv 2112.10752)."""
    return schedule_from_betas(np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2)


@on_the_host
def cosine_schedule(num_timesteps=1000, s=0.008, beta_max=0.999):
    """ᾱ = cos²((t/T + s)/(1 + s)·π/2), β clipped at `beta_max` (arXiv 2102.09672, equation 17)."""
    return schedule_from_signal(
        lambda time: np.cos((time + s) / (1 + s) * np.pi / 2) ** 2, num_timesteps, beta_max
    )


@on_the_host
def sigmoid_schedule(num_timesteps=1000, start=-3.0, end=3.0, tau=1.0, beta_max=0.999):
    """ᾱ a falling sigmoid from `start` to `end` (Jabri et al. 2022, arXiv 2212.11972)."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-z / tau))

    def signal(time):
        z = time * (end - start) + start
        return (sigmoid(end) - sigmoid(z)) / (sigmoid(end) - sigmoid(start))

    return schedule_from_signal(signal, num_timesteps, beta_max)


@on_the_host
def polynomial_schedule(num_timesteps=1001, power=2, precision=1e-5, least_kept=0.001):
    """ᾱ = (1 − 2s)·(1 − time^power)² + s with s = `precision`, which is the noise at timestep 0 and
    the signal left at the last (Hoogeboom et al. 2022, arXiv 2203.17003, appendix B).

    Time runs over 0 … 1, both ends among the timesteps, so that T steps of theirs are T + 1 levels
    here. `least_kept`: the smallest part of ᾱ that a timestep keeps of the one before, without s.
    """
    if num_timesteps < 2:
        raise SdjaxError(f"a polynomial schedule needs at least 2 timesteps, got {num_timesteps}")
    if not 0 < precision < 0.5:
        raise SdjaxError(f"precision must be between 0 and 0.5, got {precision}")
    levels = (1 - np.linspace(0, 1, num_timesteps) ** power) ** 2
    kept = np.clip(levels[1:] / levels[:-1], least_kept, 1)
    signal = (1 - 2 * precision) * np.cumprod(np.append(1.0, kept)) + precision
    return schedule_from_betas(1 - signal / np.append(1.0, signal[:-1]))


@on_the_host
def sigmoid_beta_schedule(beta_start=1e-4, beta_end=0.02, num_timesteps=1000):
    """β a rising sigmoid on −6…6 (GeoDiff, arXiv 2203.02923); diffusers calls it "sigmoid"."""
    rise = 1 / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))
    return schedule_from_betas(rise * (beta_end - beta_start) + beta_start)


@on_the_host
def schedule_from_signal(signal, num_timesteps, beta_max=0.999):
    """The schedule whose ᾱ follows the function `signal` of time in 0…1.

    β_t = min(1 − signal((t + 1)/T) / signal(t/T), beta_max).
    """
    levels = signal(np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps)
    return schedule_from_betas(np.minimum(1 - levels[1:] / levels[:-1], beta_max))


@on_the_host
def zero_terminal_snr(schedule):
    """The schedule rescaled so that the last timestep is pure noise.

    √ᾱ is shifted by its last value and scaled so that the first is kept (Lin et al. 2023, arXiv
    2305.08891, algorithm 1). Use v-prediction, trailing spacing and guidance rescale with it.
    """
    if len(schedule) < 2:
        raise SdjaxError("zero_terminal_snr needs a schedule of at least 2 timesteps, got 1")
    # β is the difference of neighbouring ᾱ, too few digits of which are left in float32: ᾱ is made
    # anew, of the smaller of α and β at each timestep, in which float32 has kept the most.
    alphas, betas = (np.asarray(x, np.float64) for x in (schedule.alphas, schedule.betas))
    root = np.sqrt(np.cumprod(np.where(betas < 0.5, 1 - betas, alphas)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    signal = root**2
    alphas = signal / np.append(1.0, signal[:-1])
    return _schedule(1 - alphas, alphas, signal)
