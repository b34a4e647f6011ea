"""How a certain model carries a request out, checked before its weights are read."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sdjax import diffusion
from sdjax.diffusion.samplers import option_names, step_count
from sdjax.errors import SdjaxError
from sdjax.models.tiny_vae import TinyVAEConfig
from sdjax.pipeline import conditions, inputs, previews, told
from sdjax.pipeline.conditions import Conditions, Pictures
from sdjax.pipeline.draws import noise_source
from sdjax.pipeline.request import Request
from sdjax.pipeline.room import check_room
from sdjax.pipeline.tiling import Tiling, tiling

STEPS = 30  # of sampling, where neither their number nor a list of them is given
STRENGTH = 0.8  # share of the steps from a picture, where nothing of it is masked
IMAGE_GUIDANCE_SCALE = 1.5
_NEEDED = {
    conditions.INPAINT: ("image", "mask"),
    conditions.EDIT: ("image",),
    conditions.DEPTH: ("image", "depth"),
    conditions.UPSCALE: ("image",),
}
_DOES = {
    conditions.INPAINT: "repaints a part of a picture",
    conditions.EDIT: "edits a picture",
    conditions.DEPTH: "keeps the depths of a picture",
    conditions.UPSCALE: "enlarges a picture",
}


class Plan(NamedTuple):
    """A request as a certain model carries it out."""

    table: diffusion.Table
    size: tuple[int, int]
    """Height and width in pixels."""
    shape: tuple[int, int, int]
    """Of an image's latents, [h, w, C]."""
    source: str
    """Who draws the noise, of `draws.draw`."""
    guidance_scale: float
    branches: int
    """Predictions that an evaluation takes for each image."""
    time_ids: np.ndarray | None
    """What SDXL is told beside the prompts, float32 [branches, 6 or 5]; see `told`."""
    conditions: Conditions
    controlled: list[np.ndarray]
    """For each of the request's `controls`, int[images]: which of its pictures each image takes."""
    tiling: Tiling = Tiling()


def plan(
    asked: Request, scheduler: Mapping, unet, vae, encoders, guidance_scale: float, dtype
) -> Plan:
    """How a model carries a request out; SdjaxError where it cannot.

    scheduler: its scheduler_config.json. unet, vae, encoders: the configurations of its networks.
    guidance_scale: its own. dtype: what the networks compute in.
    """
    kind = conditions.kind_of_channels(unet, vae)
    _check_given(asked, kind)
    for name in ("prompt_2", "negative_prompt_2"):
        if getattr(asked, name) is not None and len(encoders) == 1:
            raise SdjaxError(f"this model has one text encoder: leave {name} out")
    factor = vae.downsampling
    size = _size(asked, kind, unet, factor)
    shape = (*(side // factor for side in size), vae.latent_channels)
    seen = tiling(asked.tile, asked.windows, asked.vae_tile, size, factor)
    check_room(asked, size, shape, unet, vae, dtype, seen)
    given = _conditions(asked, kind, vae, size)
    layers = min(encoder.num_hidden_layers for encoder in encoders)
    if asked.clip_skip >= layers:
        raise SdjaxError(
            f"clip_skip must be less than the text encoder's {layers} layers, got {asked.clip_skip}"
        )
    steps, lists = asked.steps, (asked.options.get(name) for name in ("timesteps", "sigmas"))
    if steps is None and all(given is None or isinstance(given, str) for given in lists):
        steps = STEPS
    options = dict(asked.options)
    if given.starts_from_image and _chooses_below(scheduler, unet, asked.sampler):
        start, options["strength"] = None, given.strength
    else:
        start = _first_step(given, step_count(steps, options))
    table = diffusion.sampler_from_config(scheduler, steps, asked.sampler, start=start, **options)
    in_turn = diffusion.drawn_in_turn(scheduler, asked.sampler)
    source = noise_source(asked.noise, table, in_turn)
    if asked.latents is not None and asked.latents.shape != (asked.total, *shape):
        raise SdjaxError(
            f"latents must have shape {(asked.total, *shape)}, got {asked.latents.shape}"
        )
    scale = guidance_scale if asked.guidance_scale is None else asked.guidance_scale
    # A distilled network takes the scale as an input and is evaluated once as well.
    guided = scale != 1 and unet.time_cond_proj_dim is None
    branches = 1 + guided * (2 if kind == conditions.EDIT else 1)
    if branches == 3 and asked.guidance_rescale:
        raise SdjaxError("guidance_rescale is not known for models that edit a picture: leave it 0")
    previews.check_fits(asked.preview, vae.latent_channels)
    controlled = []
    for control in asked.controls:
        control.check(unet)
        count = len(control.picture)
        controlled.append(inputs.chosen("picture", count, len(asked.prompt), asked.total))
    ids = told.time_ids(asked, unet, encoders, size, branches)
    return Plan(table, size, shape, source, scale, branches, ids, given, controlled, seen)


def _check_given(asked: Request, kind: str | None) -> None:
    """SdjaxError where pictures are missing that a model needs, or given to one that takes none."""
    for name in _NEEDED.get(kind, ()):
        if getattr(asked, name) is None:
            needed = " and ".join(f"{needed}=" for needed in _NEEDED[kind])
            raise SdjaxError(f"this model {_DOES[kind]} and needs {needed}: {name} is missing")
    if asked.safety_checker is not None and asked.output != "pil":
        raise SdjaxError('safety_checker tells by image.info["nsfw"]: it needs output="pil"')
    if asked.image is None:
        if asked.mask is not None:
            raise SdjaxError("a mask is for a picture: give image= too")
        if asked.strength is not None:
            raise SdjaxError("strength is for a picture: give image= too")
    for name, wanted in (
        ("depth", conditions.DEPTH),
        ("noise_level", conditions.UPSCALE),
        ("image_guidance_scale", conditions.EDIT),
    ):
        if getattr(asked, name) is not None and kind != wanted:
            told = f"this model takes no {name}" if name == "depth" else f"{name} is"
            raise SdjaxError(f"{told} for models that {_DOES[wanted].replace('s ', ' ', 1)}")
    for name in ("mask", "strength"):
        if kind in (conditions.EDIT, conditions.UPSCALE) and getattr(asked, name) is not None:
            raise SdjaxError(f"this model {_DOES[kind]} as a whole: it takes no {name}")


def _size(asked: Request, kind: str | None, unet, factor: int) -> tuple[int, int]:
    """Height and width of the result in pixels."""
    given = inputs.size_of(asked.image[0]) if asked.image else None
    if kind == conditions.UPSCALE:
        if asked.height is not None or asked.width is not None:
            raise SdjaxError(f"this model enlarges a picture {factor} times: leave the size out")
        return tuple(factor * side for side in given)
    if given is not None:
        trained = tuple(side // factor for side in inputs.fitting(given, factor))
    else:
        trained = unet.sample_size or 512 // factor
    return image_size(asked.height, asked.width, trained, factor)


def _conditions(asked: Request, kind: str | None, vae, size: tuple[int, int]) -> Conditions:
    """The pictures of a request at the model's size."""
    small = tuple(side // vae.downsampling for side in size)
    image = _pictures("image", asked, small if kind == conditions.UPSCALE else size)
    mask, depth = _pictures("mask", asked, size), None
    if mask is not None and not mask.arrays.any(axis=(1, 2)).all():
        raise SdjaxError("mask is black everywhere: paint white what is to be repainted")
    if asked.depth is not None:
        maps = [conditions.depths(np.asarray(one)[None], small) for one in asked.depth]
        which = inputs.chosen("depth", len(maps), len(asked.prompt), asked.total)
        depth = Pictures(np.concatenate(maps), which)
    strength = asked.strength
    if strength is None:
        starts = image is not None and mask is None and kind in (None, conditions.DEPTH)
        strength = STRENGTH if starts else 1.0
    scale, level = asked.image_guidance_scale, asked.noise_level
    return Conditions(
        kind,
        image,
        mask,
        depth,
        strength,
        IMAGE_GUIDANCE_SCALE if scale is None else scale,
        conditions.NOISE_LEVEL if level is None else level,
        random=not isinstance(vae, TinyVAEConfig),
    )


def _pictures(name: str, asked: Request, size: tuple[int, int]) -> Pictures | None:
    """An argument's pictures, resized."""
    given = getattr(asked, name)
    if given is None:
        return None
    which = inputs.chosen(name, len(given), len(asked.prompt), asked.total)
    if name == "mask":
        for mask, image in zip(given, _cycled(asked.image, len(given)), strict=True):
            inputs.check_same_shape(mask, image)
    return Pictures(np.stack([inputs.resized(name, one, size) for one in given]), which)


def _cycled(items: list, count: int) -> list:
    return [items[i % len(items)] for i in range(count)]


def _chooses_below(scheduler: Mapping, unet, sampler: str | None) -> bool:
    """Whether all steps are laid out anew below the noise of a picture to start from, as diffusers'
    pipeline of latent consistency models does, and not some of them left out."""
    chosen = diffusion.sampler_name(scheduler, sampler)
    return unet.time_cond_proj_dim is not None and "strength" in option_names(chosen)


def _first_step(given: Conditions, steps: int) -> int | None:
    """How many steps are left out before a start from a picture, as diffusers counts them."""
    if not given.starts_from_image:
        return None
    taken = min(int(steps * given.strength), steps)
    if taken < 1:
        raise SdjaxError(
            f"strength {given.strength:g} leaves none of {steps} steps: the least that leaves one "
            f"is {1 / steps:.3g}"
        )
    return steps - taken


def image_size(
    height: int | None, width: int | None, trained: int | tuple[int, int], factor: int
) -> tuple[int, int]:
    """Height and width in pixels; None is the size trained at, `trained` latents of `factor`."""
    default = trained if isinstance(trained, tuple) else (trained, trained)
    size = tuple(
        side * factor if given is None else given
        for given, side in zip((height, width), default, strict=True)
    )
    for name, side in zip(("height", "width"), size, strict=True):
        if side < factor or side % factor:
            nearest = max(1, round(side / factor)) * factor
            raise SdjaxError(
                f"{name} must be a multiple of {factor}, got {side}; the nearest is {nearest}"
            )
    return size
