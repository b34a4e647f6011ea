"""One model begins pictures and another ends them: SDXL and its refiner.

The first carries out its table down to a timestep; the second goes on from the latents with the
rest of its own (Podell et al. 2023, arXiv 2307.01952, section 2.5).
"""

import bisect
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from sdjax import diffusion
from sdjax.diffusion import Table
from sdjax.diffusion.samplers import step_count
from sdjax.diffusion.tables import EVALUATE, PERTURB
from sdjax.errors import SdjaxError
from sdjax.pipeline.compiled import arrays
from sdjax.pipeline.plans import draws, told
from sdjax.pipeline.plans.plan import Plan, steps_of
from sdjax.pipeline.plans.request import Request

HANDOFF = 0.8
"""Where the refiner goes on, if nothing else is asked for."""

# What two models agree on whose latents are the same.
_SHARED = ("latent_channels", "downsampling", "scaling_factor", "shift_factor")


class Leg(NamedTuple):
    """A model with what it carries out of a request."""

    model: Any
    asked: Request
    planned: Plan


def legs(model, asked: Request) -> list[Leg]:
    """The models that carry a request out in turn, each with its part; SdjaxError where they cannot.

    There is one, or the refiner after it.
    """
    if asked.refiner is None:
        if asked.handoff is not None:
            raise SdjaxError("handoff is where a refiner goes on: give refiner= too")
        return [Leg(model, asked, model.planned(asked))]
    refiner, fraction = asked.refiner, HANDOFF if asked.handoff is None else asked.handoff
    networks = refiner.unet.config, [encoder.config for encoder in refiner.text_encoders]
    names = told.names(*networks)
    own = changed(asked, dict.fromkeys(told.SCORED if told.SCORED[0] in names else ()))
    first = Leg(model, own, model.planned(own))
    changes = dict.fromkeys(name for name in told.ARGUMENTS if _plain(name) not in names)
    changes |= dict.fromkeys(("strength", "depth", "image_guidance_scale", "noise_level"))
    if len(refiner.text_encoders) == 1:
        changes |= dict.fromkeys(("prompt_2", "negative_prompt_2"))
    if asked.mask is None and asked.extend is None:
        changes["image"] = None
    height, width = first.planned.size
    own = changed(asked, changes | {"controls": (), "height": height, "width": width})
    second = Leg(refiner, own, refiner.planned(own))
    _check_latents(model, refiner, first.planned.shape, second.planned.shape)
    return _parted(first, second, fraction)


def _plain(name: str) -> str:
    return name.removeprefix("negative_")


def changed(asked: Request, changes: dict) -> Request:
    """The request with other arguments, for one model."""
    seeds = [int(seed) for seed in asked.seeds]
    return dataclasses.replace(asked, seed=seeds, refiner=None, handoff=None, **changes)


def _check_latents(model, refiner, *shapes) -> None:
    for name in _SHARED:
        one, other = (getattr(own.vae.config, name, None) for own in (model, refiner))
        if one != other:
            raise SdjaxError(
                f"the refiner's latents are not the model's: {name} is {other}, expected {one}"
            )
    if shapes[0] != shapes[1]:
        raise SdjaxError(f"the refiner makes latents {shapes[1]}, the model {shapes[0]}")


def _parted(first: Leg, second: Leg, fraction: float) -> list[Leg]:
    """Both legs with what they carry out of their tables, where the second goes on at a fraction."""
    rest, following = _rest(first, fraction), _rest(second, fraction)
    if rest is None or following is None:
        raise SdjaxError(
            f"handoff {fraction:g} leaves the refiner none of the steps: lower it, or take more"
        )
    whole, parts = first.planned.tables, []
    for table in whole:
        end = _begin(table, rest.timesteps[0])
        if not end:
            raise SdjaxError(
                f"the first step is at timestep {table.timesteps[0]:g}, where the refiner goes on "
                f"at handoff {fraction:g}: raise handoff, steps or strength"
            )
        signal, noise = table.rows.after[end - 1]
        if not np.isclose(noise / signal, following.start[1] / following.start[0], rtol=0.01):
            raise SdjaxError(
                f"the refiner goes on at timestep {following.timesteps[0]:g}, but the model ends "
                f"at {rest.timesteps[0]:g}: give both the same sampler= and spacing="
            )
        parts.append(table.part(0, end))
    # The second was planned for a whole table, one for all images.
    planned = second.planned
    done = planned.tables[0].evaluations - following.evaluations
    texts = planned.texts._replace(which=planned.texts.which[..., done:])
    return [
        first._replace(planned=first.planned._replace(tables=parts, whole=whole)),
        second._replace(planned=planned._replace(tables=[following], texts=texts)),
    ]


def _rest(leg: Leg, fraction: float) -> Table | None:
    """A model's table from the first step on that lies below the hand-off."""
    config, options = leg.model.scheduler_config, leg.asked.options
    steps, count = steps_of(leg.asked, config), config.get("num_train_timesteps", 1000)
    # As diffusers rounds its `denoising_end` and `denoising_start`.
    below = round(count - fraction * count)

    def table(start):
        return diffusion.sampler_from_config(
            config, steps, leg.asked.sampler, start=start, **options
        )

    total = step_count(steps, options)
    start = bisect.bisect_left(
        range(total), True, key=lambda start: bool(table(start).timesteps[0] < below)
    )
    return table(start) if start < total else None


def _begin(table: Table, timestep: float) -> int:
    """The row at which the step begins that evaluates the network at this timestep."""
    kind = np.asarray(table.rows.kind)
    # The step before may have ended with an evaluation there, too.
    found = np.flatnonzero((kind == EVALUATE) & (np.asarray(table.rows.timestep) == timestep))
    if not found.size:
        return 0
    row = found[-1]
    while row and kind[row - 1] == PERTURB:
        row -= 1
    return int(row)


def continued(
    before: Leg, after: Leg, inputs: arrays.Inputs, latents: np.ndarray, numbers: np.ndarray
) -> arrays.Inputs:
    """The inputs of a leg, where it goes on from what the one before left.

    latents: [N, h, w, C]. The sampler's noise goes on in the seeds' streams.
    """
    seeds, images = after.asked.seeds[numbers], inputs.images
    tables, following = (leg.planned.each_table(numbers) for leg in (before, after))
    if images.noise is None:
        images = images._replace(keys=draws.key_data(seeds, turn=1))
    elif following[0].noise_rows.size:
        shape, given = before.planned.shape, before.planned.conditions
        start = before.asked.latents is None
        shapes = [
            [*given.draws(number, shape, start).values(), *[shape] * len(table.noise_rows)]
            for number, table in zip(numbers, tables, strict=True)
        ]
        images = images._replace(noise=draws.later_rows(seeds, shapes, following, shape))
    # As noise of unit variance is given, whatever the scale of the samplers.
    after_last = [table.rows.after[np.flatnonzero(table.rows.kind)[-1]] for table in tables]
    scale = np.hypot(*np.transpose(after_last))[:, None, None, None]
    return inputs._replace(latents=np.float32(latents / scale), images=images)
