"""Schedules and samplers from diffusers' `scheduler_config.json`."""

import dataclasses
import difflib
import warnings

import numpy as np

from sdjax.diffusion import config_options as read
from sdjax.diffusion.host import on_the_host
from sdjax.diffusion.samplers import SAMPLERS, names, sampler, starts_without_signal
from sdjax.diffusion.schedules import (
    cosine_schedule,
    schedule_from_betas,
    schedule_from_signal,
)
from sdjax.diffusion.sigmas import float32_steps
from sdjax.errors import SdjaxError


@dataclasses.dataclass(frozen=True)
class SchedulerClass:
    """What is read of a diffusers class's configuration, and its constructor's own defaults."""

    readers: tuple
    defaults: dict = dataclasses.field(default_factory=dict)


_STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
_LATENT = {**_STABLE, "beta_schedule": "scaled_linear"}
_PIXEL = {"clip_sample": True, "timestep_spacing": "leading"}
_K = (read.spacing, read.sigmas)
_SOLVER = (read.order, read.last_orders, read.bounds)
_DPM = (*_SOLVER, read.solver, read.algorithm)

CLASSES = {
    "DDPMScheduler": SchedulerClass((read.spacing, read.bounds, read.variance), _PIXEL),
    "DDIMScheduler": SchedulerClass((read.spacing, read.bounds, read.last_alpha), _PIXEL),
    "DDIMInverseScheduler": SchedulerClass((read.spacing, read.bounds, read.last_alpha), _PIXEL),
    "PNDMScheduler": SchedulerClass(
        (read.spacing, read.last_alpha, read.runge_kutta),
        {"timestep_spacing": "leading", "set_alpha_to_one": False},
    ),
    "EulerDiscreteScheduler": SchedulerClass((*_K, read.last_sigma, read.euler)),
    "EulerAncestralDiscreteScheduler": SchedulerClass((read.spacing,)),
    "HeunDiscreteScheduler": SchedulerClass((*_K, read.bounds), _STABLE),
    "LMSDiscreteScheduler": SchedulerClass((*_K, read.full_order)),
    "KDPM2DiscreteScheduler": SchedulerClass(_K, _STABLE),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(_K, _STABLE),
    "DPMSolverSDEScheduler": SchedulerClass(_K, _STABLE),
    "DPMSolverMultistepScheduler": SchedulerClass(
        (*_K, *_DPM, read.last_sigma, read.lambda_min, read.euler_at_final, read.rounding)
    ),
    "DPMSolverMultistepInverseScheduler": SchedulerClass(
        (*_K, *_DPM, read.lambda_min, read.euler_at_final)
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        (read.sigmas, *_DPM, read.last_sigma, read.lambda_min), {"lower_order_final": False}
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        (*_K, *_SOLVER, read.last_sigma, read.ends, read.unipc)
    ),
    "DEISMultistepScheduler": SchedulerClass((*_K, *_SOLVER, read.float32_weights)),
    "LCMScheduler": SchedulerClass((read.bounds, read.distilled, read.scaling), _LATENT),
    "TCDScheduler": SchedulerClass((read.distilled,), _LATENT),
    "UnCLIPScheduler": SchedulerClass(
        (read.unclip, read.bounds, read.variance),
        {"clip_sample": True, "beta_schedule": "squaredcos_cap_v2"},
    ),
    "IPNDMScheduler": SchedulerClass((), {"prediction_type": "v_prediction"}),
    "EDMEulerScheduler": SchedulerClass((read.edm, read.last_sigma)),
    "EDMDPMSolverMultistepScheduler": SchedulerClass(
        (*_DPM, read.edm, read.float32_ramp, read.last_sigma, read.euler_at_final)
    ),
    "CMStochasticIterativeScheduler": SchedulerClass((read.consistency,)),
}
CLASSES["DDPMParallelScheduler"] = CLASSES["DDPMScheduler"]
CLASSES["DDIMParallelScheduler"] = CLASSES["DDIMScheduler"]

# The class whose settings a sampler takes; of several the first.
_CLASS_OF_SAMPLER = {sampler: name for name, sampler in reversed(names.CLASSES.items())} | {
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_3m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_2s_a": "HeunDiscreteScheduler",
    "ipndm": "HeunDiscreteScheduler",
    "edm_heun": "EDMEulerScheduler",
}


@on_the_host
def schedule_from_config(config):
    """The `Schedule` of a diffusers scheduler configuration (a dict).

    Its β are diffusers' to the last bit: where a sampler cuts the timesteps of σ off to integers,
    one bit of σ is a whole timestep.
    """
    get = read.getter(config, _class_of(config).defaults)
    count = get("num_train_timesteps", 1000)
    start, end = get("beta_start", 0.0001), get("beta_end", 0.02)
    kind = get("beta_schedule", "linear")
    if not (0 <= start < 1 and 0 <= end < 1 and count in range(1, 10**6 + 1)):
        raise SdjaxError(
            f"scheduler configuration: beta_start and beta_end must lie in 0 … 1 and "
            f"num_train_timesteps in 1 … 10^6, got {start}, {end} and {count}"
        )
    if (betas := get("trained_betas")) is not None:
        pass
    elif kind == "linear":
        betas = float32_steps(start, end, count)
    elif kind == "scaled_linear":
        betas = float32_steps(start**0.5, end**0.5, count) ** 2
    elif kind == "squaredcos_cap_v2":
        betas = cosine_schedule(count).betas
    elif kind == "sigmoid":
        rise = 1 / (1 + np.exp(-float32_steps(-6, 6, count)))
        betas = rise * np.float32(end - start) + np.float32(start)
    elif kind == "exp":
        betas = schedule_from_signal(lambda time: np.exp(-12 * time), count).betas
    else:
        raise SdjaxError(
            f"unknown beta_schedule {kind!r}: expected linear, scaled_linear, squaredcos_cap_v2, "
            "sigmoid or exp"
        )
    try:
        betas = np.asarray(betas, np.float32)
    except (TypeError, ValueError) as error:
        raise SdjaxError(f"scheduler configuration: trained_betas: {error}") from error
    if get("rescale_betas_zero_snr"):
        betas = _without_last_signal(betas)
    return schedule_from_betas(betas)


def schedule_settings(config):
    """What of a scheduler configuration says its schedule and prediction, defaults filled in, so
    that another scheduler's configuration can have them.
    """
    get = read.getter(config, _class_of(config).defaults)
    defaults = {
        "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
        "beta_schedule": "linear", "trained_betas": None, "rescale_betas_zero_snr": False,
        "prediction_type": "epsilon",
    }  # fmt: skip
    return {name: get(name, default) for name, default in defaults.items()}


def _without_last_signal(betas):
    """float32[T] β with ᾱ zero at the end: what `zero_terminal_snr` does, rounded as in diffusers.

    The β of the last timesteps are small differences, of which the rounding is a good part.
    """
    root = np.sqrt(np.cumprod(1 - betas, dtype=np.float64).astype(np.float32))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    signal = root**2
    return 1 - np.append(signal[0], signal[1:] / signal[:-1])


@on_the_host
def sampler_from_config(config, steps, name=None, **options):
    """The table of a diffusers scheduler configuration.

    Args:
      config: `scheduler_config.json` as a dict; `_class_name` says which scheduler it is.
      steps: number of steps; None where `timesteps` or `sigmas` are given.
      name: another sampler to use with this schedule and prediction, as `from_config` of another
        scheduler class does; its own defaults stand in for what the configuration leaves out. For
        a network with EDM's preconditioning "heun" is "edm_heun".
      options: of `sampler`, in place of what the configuration says; `eta` and the other
        arguments of a scheduler's `step` go here. Without `noisiest` there is no such limit, as in
        diffusers, and a warning where `sampler` would have one.

    Returns:
      A `Table` that gives the numbers of that scheduler. Churn is the published algorithm's.

    Raises:
      SdjaxError: a class or a setting that is not supported.
    """
    schedule, entry = schedule_from_config(config), _class_of(config)
    chosen, implied = names.CLASSES[config["_class_name"]], {}
    if name is not None:
        own = SAMPLERS[chosen]
        chosen, implied = names.canonical_name(name, SAMPLERS)
        chosen = _of_family(own.family, chosen, config["_class_name"])
        implied = {**SAMPLERS[chosen].defaults, **implied}
        entry = CLASSES[_CLASS_OF_SAMPLER[chosen]]
    get = read.getter(config, entry.defaults)
    for setting in ("use_flow_sigmas", "use_dynamic_shifting", "solver_p"):
        if get(setting):
            raise SdjaxError(f"scheduler configuration: {setting} is not supported, unset it")
    values = {"prediction_type": get("prediction_type", "epsilon")}
    for reader in entry.readers:
        values |= reader(get)
    values |= {"noisiest": np.inf, **implied, **options}
    table = sampler(chosen, schedule, steps, **values)
    if "noisiest" not in options and starts_without_signal(chosen, schedule, table, values):
        warnings.warn(
            f"{chosen} starts at timestep {table.timesteps[0]:g} of this schedule, where the "
            f"{values['prediction_type']} that the network predicts says next to nothing of the "
            "picture, and its errors may explode, as in diffusers: noisiest=164 starts below",
            stacklevel=3,
        )
    return table


def _of_family(family, name, class_name):
    """The sampler `name`, or its EDM twin, where it fits networks of the family."""
    fitting = [known for known, entry in SAMPLERS.items() if entry.family == family]
    for candidate in (name, f"edm_{name}"):
        if candidate in fitting:
            return candidate
    raise SdjaxError(
        f"sampler {name} does not fit a network of {class_name}: it has {', '.join(fitting)}"
    )


def drawn_in_turn(config, name=None):
    """Whether diffusers takes this sampler's noise from the generators, as `torch_noise` does.

    Not so for "dpmpp_sde", which has a Brownian tree there with a seed of its own, and for
    "dpmpp_2s_a", which diffusers does not have.

    Args:
      config, name: as of `sampler_from_config`.
    """
    return sampler_name(config, name) not in ("dpmpp_sde", "dpmpp_2s_a")


def sampler_name(config, name=None):
    """The key of `SAMPLERS` that a scheduler's configuration stands for, or another name."""
    if name is None:
        _class_of(config)  # which refuses what is not known
        return names.CLASSES[config["_class_name"]]
    return names.canonical_name(name, SAMPLERS)[0]


def _class_of(config):
    name = config.get("_class_name")
    if isinstance(name, str) and name in CLASSES:
        return CLASSES[name]
    if name is None:
        raise SdjaxError(
            "scheduler configuration: no _class_name, expected diffusers' name of a scheduler "
            "such as DDIMScheduler"
        )
    near = difflib.get_close_matches(str(name), CLASSES, 3, 0.4) or sorted(CLASSES)
    raise SdjaxError(
        f"scheduler configuration: unsupported _class_name {name!r}; the nearest are "
        f"{', '.join(near)}"
    )
