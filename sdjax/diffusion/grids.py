"""Where a sampler evaluates the network: timesteps and noise levels, one of each a step.

A level is (α, σ) with x = α·x_0 + σ·ε. The builders differ as the reference implementations of
the sampler families do: DDPM's take training timesteps, k-diffusion's interpolate between them,
DPM-Solver's spread one step more than they take and leave the last to the final level.
"""

import dataclasses
import numbers

import numpy as np

from sdjax.diffusion.sigmas import (
    check_ends,
    exponential_sigmas,
    float32_steps,
    karras_sigmas,
    named_sigmas,
    timesteps_of_sigmas,
)
from sdjax.errors import SdjaxError

# ᾱ where a schedule has none left but a level needs some: ε says nothing about x_0 there.
SMALLEST_SIGNAL = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Grid:
    """The steps of a table: step i goes from level i to the next level i."""

    timesteps: np.ndarray  # [n]
    alpha: np.ndarray  # [n]
    sigma: np.ndarray  # [n]
    alpha_next: np.ndarray  # [n]
    sigma_next: np.ndarray  # [n]
    initial_scale: float  # of unit noise
    exploding: bool = False  # x is kept as x_0 + (σ/α)·ε
    signal: np.ndarray | None = None  # [T], ᾱ of the training timesteps
    betas: np.ndarray | None = None  # [T]
    stride: int = 0  # training timesteps a step, where the list is not what counts
    final_signal: float = 1.0  # ᾱ below timestep 0
    continuous: bool = False  # the network is told ¼·log(σ/α)
    left_out: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))  # their σ/α

    @property
    def ratio(self):
        """σ/α at each step; infinite where there is no signal."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    @property
    def ratio_next(self):
        with np.errstate(divide="ignore"):
            return self.sigma_next / self.alpha_next

    @property
    def inverse(self):
        """Whether the steps lead from data to noise."""
        return bool(self.ratio_next[-1] > self.ratio[0])

    @property
    def first(self):
        """How many steps were left out."""
        return len(self.left_out)

    @property
    def total(self):
        """How many steps there were before."""
        return len(self) + self.first

    def __len__(self):
        return len(self.timesteps)

    def __getitem__(self, i):
        """Step i as (timestep, α, σ, next α, next σ)."""
        columns = (self.timesteps, self.alpha, self.sigma, self.alpha_next, self.sigma_next)
        return tuple(float(column[i]) for column in columns)

    def timestep_at(self, level):
        """What the network is told at σ/α = `level`, between the grid's own levels."""
        if self.continuous:
            return 0.25 * float(np.log(level))
        return float(timesteps_of_sigmas(level, sigma_table(self.signal)))

    def starting(self, first):
        """The grid from step `first` on, for a start from a noised sample."""
        if not 0 <= first < len(self):
            raise SdjaxError(f"start must be between 0 and {len(self) - 1}, got {first}")
        scale = np.hypot(self.alpha[first], self.sigma[first]) / self.alpha[first]
        return dataclasses.replace(
            self.chosen(slice(first, None)),
            initial_scale=float(scale) if self.exploding else 1.0,
            left_out=self.ratio[:first],
        )

    def chosen(self, places):
        """The grid with the steps at these places, an index of arrays."""
        columns = ("timesteps", "alpha", "sigma", "alpha_next", "sigma_next")
        return dataclasses.replace(self, **{name: getattr(self, name)[places] for name in columns})


def _grid(timesteps, levels, next_levels, **fields):
    """`levels` are pairs of arrays α and σ."""
    alpha, sigma = (np.asarray(part, np.float64) for part in levels)
    alpha_next, sigma_next = (np.asarray(part, np.float64) for part in next_levels)
    timesteps = np.asarray(timesteps, np.float64)
    return Grid(timesteps, alpha, sigma, alpha_next, sigma_next, **fields)


def _levels(sigmas):
    """(α, σ) of unit variance with the given σ/α."""
    alpha = 1 / np.sqrt(np.asarray(sigmas, np.float64) ** 2 + 1)
    return alpha, alpha * sigmas


def sigma_table(signal):
    """σ/α of the training timesteps, in float32 as the reference implementations have it."""
    signal = np.where(signal > 0, signal, SMALLEST_SIGNAL).astype(np.float32)
    return np.sqrt((1 - signal) / signal)


def sigma_ratio(signal):
    """σ/α of the training timesteps, infinite where there is no signal."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - signal) / signal)


def spaced_timesteps(num_timesteps, steps, spacing="leading", offset=0):
    """`steps` integer timesteps out of 0 … T − 1, falling (arXiv 2305.08891, table 2).

    Args:
      num_timesteps: T.
      steps: how many.
      spacing: "leading" (0, T//n, …, shifted up by `offset`), "trailing" (T − 1 first) or
        "linspace" (both ends).
    """
    return np.round(_spaced(num_timesteps, steps, spacing, offset)).astype(int)


def _spaced(num_timesteps, steps, spacing, offset, extra=0):
    """The same unrounded where spacing is "linspace"; `extra` more are spread, then left out."""
    _check_spacing(spacing)
    if not 1 <= steps <= num_timesteps:
        raise SdjaxError(f"steps must be between 1 and {num_timesteps}, got {steps}")
    match spacing:
        case "leading":
            stride = num_timesteps // (steps + extra)
            timesteps = np.arange(steps + extra)[::-1][:steps] * stride + float(offset)
        case "trailing":
            stride = num_timesteps / steps
            timesteps = np.round(np.arange(num_timesteps, 0, -stride))[:steps] - 1
        case "linspace":
            timesteps = np.linspace(0, num_timesteps - 1, steps + extra)[::-1][:steps]
    if timesteps[0] > num_timesteps - 1:
        raise SdjaxError(
            f"steps_offset {offset} moves the first timestep to {timesteps[0]:g}, past "
            f"{num_timesteps - 1}, the last of the schedule: take fewer steps or a smaller offset"
        )
    return timesteps


def _check_spacing(spacing):
    if spacing not in ("leading", "trailing", "linspace"):
        raise SdjaxError(f"unknown spacing {spacing!r}: expected leading, trailing or linspace")


def _given(timesteps, num_timesteps):
    timesteps = np.asarray(timesteps, np.float64)
    if timesteps.ndim != 1 or not len(timesteps) or np.any(np.diff(timesteps) >= 0):
        raise SdjaxError("timesteps must be a falling list of numbers")
    if timesteps[0] > num_timesteps - 1 or timesteps[-1] < 0:
        raise SdjaxError(
            f"timesteps must lie between {num_timesteps - 1} and 0, "
            f"got {timesteps[0]:g} to {timesteps[-1]:g}"
        )
    return timesteps


def training_grid(
    signal, steps, *, spacing="leading", steps_offset=0, timesteps=None, stride=False, final="zero"
):
    """Integer training timesteps, for DDPM, DDIM and PLMS.

    Args:
      signal: [T], ᾱ.
      stride: a step always goes T//steps timesteps down, as diffusers' DDIM and PNDM do, instead
        of to the next timestep of the list.
      final: "zero", "sigma_min" or a number, σ/α after the last step.
    """
    _check_spacing(spacing)
    count = len(signal)
    final_signal = _final_signal(final, signal)
    if timesteps is None:
        timesteps = spaced_timesteps(count, steps, spacing, steps_offset)
    else:
        timesteps, stride = _given(timesteps, count).astype(int), False
    if stride:
        following = timesteps - count // steps
    else:
        following = np.append(timesteps[1:], -1)
    reached = np.where(following >= 0, signal[np.maximum(following, 0)], final_signal)
    return _grid(
        timesteps,
        (np.sqrt(signal[timesteps]), np.sqrt(1 - signal[timesteps])),
        (np.sqrt(reached), np.sqrt(1 - reached)),
        initial_scale=1.0,
        signal=signal,
        stride=count // len(timesteps),
        final_signal=final_signal,
    )


def pndm_grid(
    signal, steps, *, spacing="leading", steps_offset=0, timesteps=None, final="zero",
    runge_kutta=False, trial_counts=False,
):  # fmt: skip
    """Timesteps of PLMS.

    Args: as of `training_grid`; and
      trial_counts: the list has the second timestep twice, as diffusers' has, since the first step
        is taken again. A start from a noised sample leaves out as many as there, and the numbers
        are those of diffusers, whose sampler then misses a step.
    """
    grid = training_grid(
        signal, steps, spacing=spacing, steps_offset=steps_offset, timesteps=timesteps, final=final
    )
    if runge_kutta or not trial_counts or len(grid) < 2:
        return grid
    return grid.chosen([0, 1, *range(1, len(grid))])


def inverse_grid(signal, steps, *, spacing="leading", steps_offset=0, final="zero"):
    """Rising training timesteps, from data to noise (DDIM inversion).

    The network sees the timestep that a step goes to, the level is the one it comes from.

    Args: as of `training_grid`; `final` is the noise before the first step.
    """
    count = len(signal)
    first_signal = _final_signal(final, signal)
    timesteps = spaced_timesteps(count, steps, spacing, steps_offset)[::-1]
    before = np.minimum(timesteps - count // steps, count - 1)
    level = np.where(before >= 0, signal[np.maximum(before, 0)], first_signal)
    return _grid(
        timesteps,
        (np.sqrt(level), np.sqrt(1 - level)),
        (np.sqrt(signal[timesteps]), np.sqrt(1 - signal[timesteps])),
        initial_scale=1.0,
        signal=signal,
    )


def interpolated_grid(
    signal, steps, *, spacing="linspace", steps_offset=0, timesteps=None, sigmas=None, rho=None,
    sigma_min=None, sigma_max=None, final="zero", round_timesteps=False, log_linear=False,
    continuous=False, exploding=True,
):  # fmt: skip
    """Fractional timesteps with interpolated σ, for k-diffusion's samplers.

    Args:
      signal: [T], ᾱ.
      sigmas: name of a σ schedule between the ends of the spacing, or falling numbers.
      sigma_min, sigma_max: other ends of that schedule.
      final: "zero", "sigma_min" or a number, σ/α after the last step.
      round_timesteps: round the timesteps of Karras levels.
      log_linear: uniform in log σ, with the original timesteps; one step more if `continuous`.
      continuous: the network is told ¼·log σ instead of the timestep.
      exploding: keep x as x_0 + σ·ε.
    """
    _check_spacing(spacing)
    count, table = len(signal), sigma_table(signal)
    if timesteps is None:
        timesteps = _spaced(count, steps, spacing, steps_offset)
    else:
        timesteps = _given(timesteps, count)
    levels = np.interp(timesteps, np.arange(count), table)
    last = _final_sigma(final, table[0])
    if log_linear:
        levels = exponential_sigmas(len(timesteps) + 1, table[0], table[-1])
    if log_linear and sigmas is None and not continuous:
        levels, last = levels[:-1], levels[-1]
    elif isinstance(sigmas, str):
        low = levels[-1] if sigma_min is None else sigma_min
        high = levels[0] if sigma_max is None else sigma_max
        levels = named_sigmas(sigmas, len(timesteps), low, high, table, rho)
        timesteps = timesteps_of_sigmas(levels, table)
        if round_timesteps and sigmas == "karras":
            timesteps = np.round(timesteps)
    elif sigmas is not None:
        levels, last = _custom(sigmas, last)
        timesteps = timesteps_of_sigmas(levels, table)
    if continuous:
        timesteps = 0.25 * np.log(levels)
    top = levels[0]
    scale = top if spacing != "leading" else np.hypot(top, 1)
    return _chained(
        timesteps,
        np.append(levels, last),
        initial_scale=scale if exploding else 1.0,
        exploding=exploding,
        continuous=continuous,
        signal=signal,
    )


def solver_grid(
    signal, steps, *, spacing="linspace", steps_offset=0, timesteps=None, sigmas=None, rho=None,
    sigma_min=None, sigma_max=None, final="zero", lambda_min=-np.inf, round_karras=True,
):  # fmt: skip
    """Integer timesteps and the level after the last step, for DPM-Solver, UniPC and DEIS.

    Args:
      signal: [T], ᾱ.
      sigmas: name of a σ schedule over the whole training range, or falling numbers.
      final: "zero", "sigma_min", a number, or "last" (the σ schedule's own last level again).
      lambda_min: smallest log(α/σ) to start from, for schedules that end in almost pure noise.
      round_karras: round the timesteps of Karras and Lu levels; the others are cut off.
    """
    _check_spacing(spacing)
    count, table = len(signal), sigma_table(signal)
    last = _final_sigma("sigma_min" if final == "last" else final, table[0])
    if isinstance(sigmas, str):
        low = table[0] if sigma_min is None else sigma_min
        high = table[-1] if sigma_max is None else sigma_max
        levels = named_sigmas(sigmas, steps, low, high, table, rho)
        timesteps = timesteps_of_sigmas(levels, table)
        rounded = sigmas in ("karras", "lu") and round_karras
        timesteps = np.round(timesteps) if rounded else np.trunc(timesteps)
        last = levels[-1] if final == "last" else last
    elif sigmas is not None:
        levels, last = _custom(sigmas, last)
        timesteps = timesteps_of_sigmas(levels, table)
    else:
        usable = count - int(np.searchsorted(-np.log(table)[::-1], lambda_min))
        if timesteps is not None:
            timesteps = np.trunc(_given(timesteps, count))
        elif spacing == "trailing":
            timesteps = np.round(np.arange(usable, 0, -count / steps))[:steps] - 1
        else:
            timesteps = np.round(_spaced(usable, steps, spacing, steps_offset, extra=1))
        levels = np.interp(timesteps, np.arange(count), table)
    return _chained(timesteps, np.append(levels, last), initial_scale=1.0, signal=signal)


def inverse_solver_grid(
    signal, steps, *, spacing="linspace", steps_offset=0, sigmas=None, lambda_min=-np.inf
):
    """Rising timesteps, for DPM-Solver from data to noise."""
    _check_spacing(spacing)
    count, table = len(signal), sigma_table(signal)
    usable = count - int(np.searchsorted(-np.log(table)[::-1], lambda_min))
    match spacing:
        case "linspace":
            timesteps = np.round(np.linspace(0, usable - 1, steps + 1))[:-1]
        case "leading":
            timesteps = np.arange(steps) * float(usable // (steps + 1)) + steps_offset
        case "trailing":
            timesteps = np.round(np.arange(usable, 0, -count / steps))[::-1] - 1
    levels = np.append(np.interp(timesteps, np.arange(count), table), table[usable - 1])
    if sigmas is not None:
        levels = named_sigmas(sigmas, steps, table[0], table[-1], table)[::-1]
        timesteps = timesteps_of_sigmas(levels, table)
        timesteps = np.round(timesteps) if sigmas == "karras" else timesteps
        levels = np.append(levels, levels[-1])
    # Those of exponential and beta levels are told apart before they are cut off.
    kept = np.trunc(np.unique(timesteps))
    return _chained(kept, levels[: len(kept) + 1], initial_scale=1.0, signal=signal)


def edm_grid(
    signal, steps, *, sigma_min=0.002, sigma_max=80.0, rho=7.0, sigmas="karras", final="zero",
    float32_ramp=False,
):  # fmt: skip
    """Levels of a network that is told ¼·log σ (Karras et al. 2022, arXiv 2206.00364).

    Args:
      sigma_min, sigma_max, rho: of the Karras and exponential levels.
      sigmas: "karras", "exponential", or falling numbers.
      final: "zero", "sigma_min" or a number, σ after the last step.
      float32_ramp: compute Karras levels in float32, as diffusers does for DPM-Solver: σ^(1/ρ) to
        the power of ρ makes its rounding ρ times as large.
    """
    check_ends(sigma_min, sigma_max, rho)
    last = _final_sigma(final, sigma_min)
    if not isinstance(sigmas, str):
        levels, last = _custom(sigmas, last)
    elif sigmas == "exponential":
        levels = exponential_sigmas(steps, sigma_min, sigma_max)
    elif sigmas == "karras" and float32_ramp:
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        levels = (high + float32_steps(0, 1, steps) * (low - high)) ** rho
    elif sigmas == "karras":
        levels = karras_sigmas(steps, sigma_min, sigma_max, rho)
    else:
        raise SdjaxError(
            f"unknown EDM sigmas {sigmas!r}: expected karras, exponential or falling numbers"
        )
    levels = np.append(levels, last).astype(np.float32).astype(np.float64)
    return _grid(
        0.25 * np.log(levels[:-1]),
        (np.ones(len(levels) - 1), levels[:-1]),
        (np.ones(len(levels) - 1), levels[1:]),
        initial_scale=np.hypot(levels[0], 1),
        exploding=True,
        continuous=True,
    )


def distilled_grid(
    signal, steps, *, original_steps=50, strength=1.0, timesteps=None, every_timestep=False
):
    """Timesteps a network was distilled on, for LCM and TCD.

    Args:
      original_steps: how many there are, T//n apart, ending at T − 1.
      strength: below 1, the share of them to use, for a start from a noised sample.
      every_timestep: choose among all T instead.
    """
    count = len(signal)
    if every_timestep:
        origin = np.arange(int(count * strength))
    else:
        origin = np.arange(1, int(original_steps * strength) + 1) * (count // original_steps) - 1
    if timesteps is not None:
        timesteps = _given(timesteps, count).astype(int)
    elif not 1 <= steps <= len(origin):
        raise SdjaxError(
            f"steps must be between 1 and {len(origin)}, the timesteps of the distillation, "
            f"got {steps}"
        )
    else:
        places = np.floor(np.linspace(0, len(origin), steps, endpoint=False)).astype(int)
        timesteps = origin[::-1][places]
    reached = np.append(signal[timesteps[1:]], 1.0)
    return _grid(
        timesteps,
        (np.sqrt(signal[timesteps]), np.sqrt(1 - signal[timesteps])),
        (np.sqrt(reached), np.sqrt(1 - reached)),
        initial_scale=1.0,
        signal=signal,
    )


def consistency_grid(
    signal, steps, *, scales=40, sigma_min=0.002, sigma_max=80.0, rho=7.0, timesteps=None
):
    """Levels of consistency models, which are told 250·log σ (arXiv 2303.01469).

    Args:
      scales: number of levels of the training.
      timesteps: falling level numbers below `scales`, counted from the least noise.
    """
    check_ends(sigma_min, sigma_max, rho)
    if timesteps is None:
        timesteps = np.arange(steps)[::-1] * (scales // steps)
    else:
        timesteps = _given(timesteps, scales)
    ramp = np.asarray(timesteps, np.float64)[::-1] / (scales - 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = np.append((high + ramp * (low - high)) ** rho, sigma_min)
    return _grid(
        250 * np.log(levels[:-1] + 1e-44),
        (np.ones(len(ramp)), levels[:-1]),
        (np.ones(len(ramp)), levels[1:]),
        initial_scale=sigma_max,
        exploding=True,
    )


def crash_grid(signal, steps):
    """Levels of diffusers' IPNDMScheduler: σ = sin²(πs/2), s = 1 … 0, told as an angle."""
    sigma = np.sin(np.linspace(1, 0, steps + 1) * np.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    return _grid(
        np.arctan2(sigma, alpha)[:-1] / np.pi * 2,
        (alpha[:-1], sigma[:-1]),
        (alpha[1:], sigma[1:]),
        initial_scale=1.0,
    )


# Of networks that are told levels instead of the timesteps of a schedule.
WITHOUT_SCHEDULE = (edm_grid, consistency_grid, crash_grid)


def _chained(timesteps, sigmas, **fields):
    # Rounded as in the reference implementations, where equal levels have to stay equal.
    alpha, sigma = _levels(np.asarray(sigmas, np.float32).astype(np.float64))
    return _grid(timesteps, (alpha[:-1], sigma[:-1]), (alpha[1:], sigma[1:]), **fields)


def _final_sigma(final, smallest):
    """σ/α after the last step, of "zero", "sigma_min" or a number."""
    if isinstance(final, str):
        if final not in ("zero", "sigma_min"):
            raise SdjaxError(f"unknown final level {final!r}: expected zero, sigma_min or a number")
        return 0.0 if final == "zero" else smallest
    if not (isinstance(final, numbers.Real) and 0 <= final < np.inf):
        raise SdjaxError(f"final must be zero, sigma_min or a finite number from 0 on, got {final!r}")
    return float(final)


def _final_signal(final, signal):
    """ᾱ after the last step."""
    return 1 / (1 + _final_sigma(final, np.sqrt((1 - signal[0]) / signal[0])) ** 2)


def _custom(sigmas, last):
    """Given levels and the one after them: 0 at their end, or `last`."""
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or len(sigmas) < 1 or np.any(np.diff(sigmas) >= 0) or sigmas[-1] < 0:
        raise SdjaxError("sigmas must be a falling list of numbers that are not negative")
    return (sigmas[:-1], 0.0) if sigmas[-1] == 0 else (sigmas, last)
