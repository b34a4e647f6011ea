"""Noise levels of a given number of steps: the σ schedules that users know by name.

σ is the noise over the signal, √((1 − ᾱ)/ᾱ). Every function gives `steps` falling values, without
the level after the last step.
"""

import numpy as np

from sdjax.errors import SdjaxError

# Sabour et al. 2024, "Align Your Steps", arXiv 2404.14507: the published ten-step schedules.
ALIGN_YOUR_STEPS = {
    "ays_sd": (
        14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
        0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582,
    ),
    "ays_sdxl": (
        14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
        0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
    ),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}  # fmt: skip


def float32_steps(start, end, count):
    """float32[count] numbers evenly from `start` to `end`, rounded as PyTorch rounds them.

    The step is a float32; the numbers are counted from the end that is nearer.
    """
    start, end = np.float32(start), np.float32(end)
    step = (end - start) / np.float32(max(count - 1, 1))
    number = np.arange(count, dtype=np.float64)
    rising, falling = start + step * number, end - step * (count - 1 - number)
    return np.where(number < max(count // 2, 1), rising, falling).astype(np.float32)


def karras_sigmas(steps, low, high, rho=7.0):
    """Uniform in σ^(1/ρ) (Karras et al. 2022, arXiv 2206.00364, equation 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential_sigmas(steps, low, high):
    """Uniform in log σ."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def polyexponential_sigmas(steps, low, high, rho=1.0):
    """Polynomial in log σ; ρ = 1 is exponential (k-diffusion)."""
    ramp = np.linspace(1, 0, steps) ** rho
    return np.exp(ramp * (np.log(high) - np.log(low)) + np.log(low))


def beta_sigmas(steps, low, high, alpha=0.6, beta=0.6):
    """Quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173)."""
    from scipy.special import betaincinv  # which takes long to import

    return low + betaincinv(alpha, beta, np.linspace(1, 0, steps)) * (high - low)


def lu_sigmas(steps, low, high):
    """Uniform in the log-SNR (Lu et al. 2022, arXiv 2206.00927).

    The logarithms are rounded to float32 as in diffusers, where the first timestep depends on it.
    """
    ends = np.log(np.array([high, low], np.float32)).astype(np.float64)
    return np.exp(np.linspace(*ends, steps))


def kl_optimal_sigmas(steps, low, high):
    """Uniform in the angle arctan σ (arXiv 2404.14507, theorem 3.1, for Gaussian data)."""
    return np.tan(np.linspace(np.arctan(high), np.arctan(low), steps))


def align_your_steps_sigmas(steps, name):
    """The published levels, interpolated in log σ where `steps` is not ten."""
    levels = np.log(ALIGN_YOUR_STEPS[name])
    places = np.linspace(0, len(levels) - 1, steps + 1)[:-1]
    return np.exp(np.interp(places, np.arange(len(levels)), levels))


def training_sigmas(steps, table, name):
    """Schedules on the training levels (ComfyUI): "sgm_uniform" and "simple".

    Args:
      table: [T] rising σ of the training timesteps.
    """
    last = len(table) - 1
    if name == "simple":
        return table[last - (np.arange(steps) * (len(table) / steps)).astype(int)]
    places = np.linspace(last, 0, steps + 1)[:-1]
    return np.exp(np.interp(places, np.arange(len(table)), np.log(table)))


def check_ends(low, high, rho):
    """Raises where `low` … `high` is no range of σ, or ρ no exponent."""
    if not 0 < low <= high < np.inf:
        raise SdjaxError(f"sigma_min and sigma_max must rise from above 0, got {low} and {high}")
    if not 0 < rho < np.inf:
        raise SdjaxError(f"rho must be a finite number above 0, got {rho}")


def named_sigmas(name, steps, low, high, table, rho=None):
    """The σ schedule `name` between `low` and `high`."""
    low, high = float(low), float(high)
    check_ends(low, high, 1.0 if rho is None else rho)
    shape = {} if rho is None else {"rho": rho}
    match name:
        case "karras":
            return karras_sigmas(steps, low, high, **shape)
        case "exponential":
            return exponential_sigmas(steps, low, high)
        case "polyexponential":
            return polyexponential_sigmas(steps, low, high, **shape)
        case "beta":
            return beta_sigmas(steps, low, high)
        case "lu":
            return lu_sigmas(steps, low, high)
        case "kl_optimal":
            return kl_optimal_sigmas(steps, low, high)
        case "sgm_uniform" | "simple":
            return training_sigmas(steps, table, name)
        case "ays_sd" | "ays_sdxl" | "ays_svd":
            return align_your_steps_sigmas(steps, name)
    raise SdjaxError(
        f"unknown sigmas {name!r}: expected karras, exponential, polyexponential, beta, lu, "
        f"kl_optimal, sgm_uniform, simple, {', '.join(ALIGN_YOUR_STEPS)}, or falling numbers"
    )


def timesteps_of_sigmas(sigmas, table):
    """The fractional timestep of each σ, by interpolation of log σ in the training levels.

    The table may fall at its end, as that of a schedule without signal there does: the last
    interval that starts below σ counts.
    """
    wanted, known = np.log(np.maximum(sigmas, 1e-10)), np.log(table)
    reached = np.expand_dims(wanted, -1) >= known
    last = len(known) - 1 - np.argmax(reached[..., ::-1], axis=-1)
    low = np.minimum(np.where(reached.any(axis=-1), last, 0), len(known) - 2)
    share = (known[low] - wanted) / (known[low] - known[low + 1])
    return low + np.clip(share, 0, 1).astype(np.float64)
