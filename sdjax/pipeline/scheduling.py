"""From a diffusers scheduler_config.json to the table of a sampler."""

from collections.abc import Mapping
from typing import Any

from sdjax import diffusion
from sdjax.errors import SdjaxError

BETAS = {
    "linear": diffusion.linear_schedule,
    "scaled_linear": diffusion.scaled_linear_schedule,
}
SAMPLERS = {"DDIMScheduler": "ddim", "DDPMScheduler": "ddpm"}


def schedule_from_config(config: Mapping[str, Any]) -> diffusion.Schedule:
    """The noise schedule that a scheduler configuration describes; SdjaxError for an unknown one."""
    steps = config.get("num_train_timesteps", 1000)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = diffusion.schedule_from_betas(config["trained_betas"])
    elif name == "squaredcos_cap_v2":
        schedule = diffusion.cosine_schedule(steps)
    elif name in BETAS:
        schedule = BETAS[name](config["beta_start"], config["beta_end"], steps)
    else:
        known = ", ".join([*BETAS, "squaredcos_cap_v2"])
        raise SdjaxError(f"beta_schedule must be one of {known}, got {name!r}")
    if config.get("rescale_betas_zero_snr"):
        schedule = diffusion.zero_terminal_snr(schedule)
    return schedule


def sampler_table(config: Mapping[str, Any], steps: int, name: str | None = None, **options):
    """The table of a sampler for a scheduler configuration.

    name: a sampler, or None for the configuration's own. options: of the sampler; they take
    precedence over the configuration's.
    """
    if name is None:
        name = SAMPLERS.get(config.get("_class_name"), "ddim")
    given = {
        "prediction_type": config.get("prediction_type", "epsilon"),
        "spacing": config.get("timestep_spacing", "leading"),
        "steps_offset": config.get("steps_offset", 0),
    }
    if config.get("clip_sample"):
        given["clip"] = config.get("clip_sample_range", 1.0)
    schedule = schedule_from_config(config)
    return diffusion.sampler(name, schedule, steps, **{**given, **options})
