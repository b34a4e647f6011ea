"""Samplers by name: each is a function that writes the rows of a table, and a grid of levels."""

import dataclasses
import difflib
import inspect
import numbers
from collections.abc import Callable

import numpy as np

from sdjax.diffusion import grids
from sdjax.diffusion.host import on_the_host
from sdjax.diffusion.networks import consistency_model, preconditioned, unit_variance
from sdjax.diffusion.predictions import prediction_name
from sdjax.diffusion.samplers import consistency, dpm_solver, k_diffusion, pndm, training
from sdjax.diffusion.samplers.checks import of_kind
from sdjax.diffusion.samplers.deis import deis
from sdjax.diffusion.samplers.names import canonical_name
from sdjax.diffusion.samplers.unipc import unipc
from sdjax.diffusion.tables import build_table
from sdjax.errors import SdjaxError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What a name stands for. Options go to the functions that have a parameter of their name."""

    rows: Callable
    grid: Callable
    defaults: dict = dataclasses.field(default_factory=dict)
    network: Callable = unit_variance

    @property
    def needs_schedule(self):
        """Whether the levels are those of a training schedule."""
        return self.grid not in grids.WITHOUT_SCHEDULE

    @property
    def family(self):
        """What the network was trained as: samplers of one family can stand in for each other."""
        return self.network, None if self.needs_schedule else self.grid

    @property
    def option_names(self):
        """For each of grid, rows and network, the names of its options."""
        return [list(_defaults(function)) for function in self.functions]

    @property
    def functions(self):
        """What the options go to: grid, rows and network."""
        return self.grid, self.rows, self.network


def _defaults(function):
    """The options of a function of a sampler, with their defaults."""
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


# Where ε says so little about x_0 that what it errs by is multiplied beyond all pictures: e^5.1,
# which Lu et al. give for the cosine schedule. Linear schedules end below it.
NOISIEST = float(np.exp(5.1))
_FROM_NOISE = (
    grids.training_grid, grids.pndm_grid, grids.interpolated_grid, grids.solver_grid
)  # fmt: skip

_SDE = {"algorithm": "sde_dpmpp", "published": True}

SAMPLERS = {
    "ddpm": Sampler(training.ddpm, grids.training_grid),
    "ddim": Sampler(training.ddim, grids.training_grid, {"stride": True}),
    "ddim_inverse": Sampler(training.ddim, grids.inverse_grid),
    "plms": Sampler(pndm.plms, grids.pndm_grid, {"final": "sigma_min"}),
    "ipndm": Sampler(pndm.ipndm, grids.interpolated_grid, {"exploding": False}),
    "euler": Sampler(k_diffusion.euler, grids.interpolated_grid),
    "euler_a": Sampler(k_diffusion.euler_a, grids.interpolated_grid),
    "heun": Sampler(k_diffusion.heun, grids.interpolated_grid),
    "lms": Sampler(k_diffusion.lms, grids.interpolated_grid),
    "dpm2": Sampler(k_diffusion.dpm2, grids.interpolated_grid, {"round_timesteps": True}),
    "dpm2_a": Sampler(k_diffusion.dpm2_a, grids.interpolated_grid, {"round_timesteps": True}),
    "dpmpp_sde": Sampler(k_diffusion.dpmpp_sde, grids.interpolated_grid),
    "dpmpp_2s_a": Sampler(k_diffusion.dpmpp_2s_a, grids.interpolated_grid),
    "dpmpp_2m": Sampler(dpm_solver.multistep, grids.solver_grid),
    "dpmpp_2s": Sampler(dpm_solver.singlestep, grids.solver_grid),
    "dpmpp_2m_sde": Sampler(dpm_solver.multistep, grids.solver_grid, _SDE),
    "dpmpp_3m_sde": Sampler(dpm_solver.multistep, grids.solver_grid, {**_SDE, "order": 3}),
    "dpmpp_2m_inverse": Sampler(dpm_solver.multistep, grids.inverse_solver_grid),
    "unipc": Sampler(unipc, grids.solver_grid),
    "deis": Sampler(deis, grids.solver_grid, {"final": "last"}),
    "lcm": Sampler(consistency.lcm, grids.distilled_grid),
    "tcd": Sampler(consistency.tcd, grids.distilled_grid),
    "edm_euler": Sampler(k_diffusion.euler, grids.edm_grid, {}, preconditioned),
    "edm_heun": Sampler(k_diffusion.heun, grids.edm_grid, {}, preconditioned),
    "edm_dpmpp_2m": Sampler(dpm_solver.multistep, grids.edm_grid, {}, preconditioned),
    "crash_ipndm": Sampler(pndm.ipndm, grids.crash_grid),
    "consistency": Sampler(
        consistency.consistency, grids.consistency_grid, {}, consistency_model
    ),
}


@on_the_host
def sampler(
    name,
    schedule,
    steps,
    *,
    prediction_type="epsilon",
    start=None,
    clip=None,
    threshold=None,
    pad_to=None,
    dtype=np.float32,
    noisiest=None,
    **options,
):
    """The table of a sampler.

    Spacing, rounding and final levels are by default those of the diffusers class of that sampler;
    x_0 is not clipped unless asked.

    Args:
      name: a key of `SAMPLERS`, or a name that other programs use ("DPM++ 2M Karras").
      schedule: the `Schedule` the network was trained with; None for the EDM and consistency ones.
      steps: number of steps; may be None where `timesteps` or `sigmas` list them.
      prediction_type: what the network predicts: "epsilon", "v_prediction", "x_0" or "score".
      start: number of steps to leave out, for a start from a noised sample (`Table.noised`); None
        starts from noise.
      clip: bound of |x_0|; 1 for pixels in −1…1.
      threshold: (quantile, largest bound) of dynamic thresholding.
      pad_to: rows of the table; by default a power of two from 64 on.
      dtype: of the coefficients, which are computed in float64.
      noisiest: the highest σ/α to start from: timesteps above it are left out before the steps are
        spread. None is e^5.1 = 164 where the network predicts ε or the score, x_0 is not bounded
        and the steps are spread to the schedule's end, and no limit otherwise; infinity is none.
      options: of the sampler's grid (`spacing`, `steps_offset`, `sigmas`, `timesteps`, `final` …)
        and of the sampler (`order`, `eta` …); see `sdjax.diffusion.grids` and its function.

    Returns:
      A `Table`.

    Raises:
      SdjaxError: an unknown name, option or value, or a step count that the schedule cannot give.
    """
    name, implied = canonical_name(name, SAMPLERS)
    entry = SAMPLERS[name]
    options = _checked(name, [entry], {**entry.defaults, **implied, **options})
    clip, threshold = _bounds(clip, threshold)
    steps = step_count(steps, options)
    if schedule is None and entry.needs_schedule:
        raise SdjaxError(f"sampler {name} needs the schedule of the network's training, got None")
    signal = None if schedule is None else training_signal(schedule)
    network_names = entry.option_names[2]
    prediction = prediction_name(prediction_type)
    bounded = clip is not None or threshold is not None
    if noisiest is not None:
        signal = _up_to(noisiest, signal, name, entry, options)
    elif _errs_with_noise(prediction, bounded) and _spread_to_the_end(entry, options):
        usable = with_signal(signal)
        signal = signal[:usable] if steps <= usable else signal
    grid = entry.grid(signal, steps, **_chosen(options, entry.option_names[0]))
    if schedule is not None:
        grid = dataclasses.replace(grid, betas=np.asarray(schedule.betas, np.float64))
    if start is not None:
        grid = grid.starting(start)
    network = entry.network(prediction, bounded, **_chosen(options, network_names))
    size = np.hypot(grid.alpha[0], grid.sigma[0])
    return build_table(
        entry.rows(grid, network, **_chosen(options, entry.option_names[1])),
        initial_scale=grid.initial_scale,
        start=(grid.alpha[0] / size, grid.sigma[0] / size),
        clip=clip,
        threshold=threshold,
        pad_to=pad_to,
        dtype=dtype,
    )


def training_signal(schedule):
    """ᾱ with the roundings of the reference implementations: 1 − β and the products in float32.

    Where a schedule ends in almost pure noise, the levels there depend on them.
    """
    alphas = 1 - np.asarray(schedule.betas, np.float32)
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32).astype(np.float64)


def with_signal(signal, noisiest=NOISIEST):
    """How many of the first timesteps have a σ/α of at most `noisiest`; ᾱ falls."""
    return int((grids.sigma_ratio(signal) <= noisiest).sum())


def _spread_to_the_end(entry, options):
    """Whether the first step is at the schedule's last timestep, and not where it was told."""
    told = any(options.get(name) is not None for name in ("sigma_max", "lambda_min"))
    if entry.grid not in _FROM_NOISE or told or _listed(options):
        return False
    default = inspect.signature(entry.grid).parameters["spacing"].default
    return options.get("sigmas") is not None or options.get("spacing", default) != "leading"


def starts_without_signal(name, schedule, table, options):
    """Whether `sampler` would have left the first timestep out, had it not been told otherwise."""
    entry, bounded = SAMPLERS[name], np.isfinite(table.clip) or table.threshold is not None
    if not _errs_with_noise(prediction_name(options["prediction_type"]), bounded):
        return False
    if entry.grid not in _FROM_NOISE or _listed(options):
        return False
    signal_there, noise_there = table.start
    usable = with_signal(training_signal(schedule))
    return noise_there > NOISIEST * signal_there and len(table.timesteps) <= usable


def _errs_with_noise(prediction, bounded):
    """Whether an error of the network is one of x_0 multiplied by σ/α."""
    return prediction in ("epsilon", "score") and not bounded


def _listed(options):
    """Whether the options list where each step is."""
    sigmas = options.get("sigmas")
    return options.get("timesteps") is not None or not isinstance(sigmas, str | None)


def _up_to(noisiest, signal, name, entry, options):
    """ᾱ of the timesteps whose σ/α is at most `noisiest`, as it was asked for."""
    if _checked_noisiest(noisiest) == np.inf:
        return signal
    if entry.grid not in _FROM_NOISE:
        raise SdjaxError(f"sampler {name} starts where it was trained to: noisiest does not apply")
    if _listed(options):
        raise SdjaxError("noisiest does not go with a list of timesteps or sigmas, which say it")
    usable = with_signal(signal, noisiest)
    if usable < 1:
        raise SdjaxError(f"noisiest {noisiest} is below the schedule's lowest level: raise it")
    return signal[:usable]


def _checked_noisiest(noisiest):
    if isinstance(noisiest, bool) or not isinstance(noisiest, numbers.Real) or not noisiest > 0:
        raise SdjaxError(f"noisiest must be a number above 0, got {noisiest!r}")
    return noisiest


def step_count(steps, options):
    """`steps`, or how many of them the options list."""
    timesteps, sigmas = options.get("timesteps"), options.get("sigmas")
    if timesteps is not None and sigmas is not None:
        raise SdjaxError(
            f"timesteps and sigmas both say where the steps are, got sigmas={sigmas} beside "
            "timesteps: give one of them"
        )
    named = timesteps is None and (sigmas is None or isinstance(sigmas, str))
    if not named:
        name, given = ("sigmas", sigmas) if timesteps is None else ("timesteps", timesteps)
        given = np.ravel(given)
        # A last σ of zero is where the last step goes.
        count = len(given) - int(timesteps is None and len(given) > 0 and given[-1] == 0)
        if steps not in (None, count):
            raise SdjaxError(
                f"steps is {steps} but {name} lists {count}: leave steps at None, or give as many"
            )
        steps = count
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise SdjaxError(
            f"steps must be a whole number from 1 on, got {steps!r}; None only beside a list of "
            "timesteps or sigmas"
        )
    return int(steps)


def _chosen(options, names):
    return {name: options[name] for name in names if name in options}


def check_options(name, options):
    """Refuses a name, an option or a value before the network is known that is sampled.

    name: of `sampler`, or None for any; it may stand for its EDM twin.
    """
    chosen = list(SAMPLERS)
    if name is not None:
        name, implied = canonical_name(name, SAMPLERS)
        options = {**implied, **options}
        chosen = [known for known in (name, f"edm_{name}") if known in SAMPLERS]
    others = ("clip", "threshold", "noisiest")
    own = {key: value for key, value in options.items() if key not in others}
    _bounds(options.get("clip"), options.get("threshold"))
    if options.get("noisiest") is not None:
        _checked_noisiest(options["noisiest"])
    if "prediction_type" in own:
        prediction_name(own.pop("prediction_type"))
    _checked(name, [SAMPLERS[known] for known in chosen], own)


def option_names(*samplers):
    """The options of these samplers, or of all, and of `sampler` itself."""
    entries = [SAMPLERS[name] for name in samplers or SAMPLERS]
    own = {name for entry in entries for names in entry.option_names for name in names}
    return sorted(own | {"prediction_type", "clip", "threshold", "noisiest"})


def _checked(name, entries, options):
    """The options as the functions take them; SdjaxError where one is unknown or of another kind."""
    defaults = {}
    for function in {function: None for entry in entries for function in entry.functions}:
        for option, default in _defaults(function).items():
            defaults.setdefault(option, []).append(default)
    for option in options:
        if option not in defaults:
            known = sorted(defaults)
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise SdjaxError(f"sampler {name} has no option {option!r}: {hint}")
    return {option: of_kind(option, value, defaults[option]) for option, value in options.items()}


def _bounds(clip, threshold):
    """The bounds of x_0, as numbers."""
    clip = None if clip is None else of_kind("clip", clip, [1.0])
    if threshold is not None:
        if np.shape(threshold) != (2,):
            raise SdjaxError(
                f"threshold must be a quantile and the largest bound, got {threshold!r}"
            )
        threshold = tuple(of_kind("threshold", value, [1.0]) for value in threshold)
    return clip, threshold
