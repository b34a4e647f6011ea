"""How a certain model carries a request out, checked before its weights are read."""

import copy
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from sdjax import diffusion
from sdjax.diffusion.samplers import option_names, step_count
from sdjax.diffusion.torch_noise import BLOCK, Outer
from sdjax.errors import SdjaxError
from sdjax.models.motion import MotionConfig
from sdjax.models.tiny_vae import TinyVAEConfig
from sdjax.pipeline.given import clips, conditions, first_frame, inputs, regions, sounds
from sdjax.pipeline.given.conditions import Conditions, Pictures
from sdjax.pipeline.given.tiling import Tiling, tiling
from sdjax.pipeline.plans import canvas, crop, prompts, told
from sdjax.pipeline.plans.draws import noise_source
from sdjax.pipeline.plans.prompts import Texts
from sdjax.pipeline.plans.request import Request
from sdjax.pipeline.plans.room import check_room
from sdjax.pipeline.results import previews
from sdjax.pipeline.steering.base import Steering

STEPS = 30  # of sampling, where neither their number nor a list of them is given
OWN_STEPS = "_steps"  # of a scheduler's configuration; diffusers passes over such names
STRENGTH = 0.8  # share of the steps from a picture, where nothing of it is masked
IMAGE_GUIDANCE_SCALE = 1.5
_NEEDED = {
    conditions.INPAINT: ("image", "mask"),
    conditions.EDIT: ("image",),
    conditions.DEPTH: ("image", "depth"),
    conditions.UPSCALE: ("image",),
    conditions.MOVE: ("image",),
}
_DOES = {
    conditions.INPAINT: "repaints a part of a picture",
    conditions.EDIT: "edits a picture",
    conditions.DEPTH: "keeps the depths of a picture",
    conditions.UPSCALE: "enlarges a picture",
    conditions.MOVE: "moves a picture",
}


class Plan(NamedTuple):
    """A request as a certain model carries it out."""

    tables: list[diffusion.Table]
    """Different ones, from the longest on."""
    schedule: np.ndarray
    """int[images]: which of them each image takes."""
    size: tuple[int, int]
    """Height and width in pixels."""
    shape: tuple[int, ...]
    """Of an image's latents, [h, w, C], or of a clip's, [F, h, w, C]."""
    source: str
    """Who draws the noise, of `draws.draw`."""
    guidance_scale: np.ndarray
    """float[images], of a clip's last frame."""
    distilled: bool
    """Whether the network is told the scale of guidance, which then multiplies nothing."""
    negatives: int
    """Branches that the negative prompt is for: 2 for a model that edits, with and without the
    picture."""
    texts: Texts
    time_ids: np.ndarray | None
    """What SDXL is told beside the prompts, float32 [branches, 6 or 5]; see `told`."""
    conditions: Conditions
    controls: list[Steering]
    """The request's, or the same of the crops that are painted."""
    controlled: list[np.ndarray]
    """For each of `controls`, int[images]: which of its pictures each image takes."""
    fields: np.ndarray | None
    """What the prompt and each region count at each place, float32 [images, 1 + regions, h, w]."""
    tiling: Tiling = Tiling()

    frames: int | None = None
    """Of a clip; None for pictures."""
    samples: int | None = None
    """Of a waveform; None for what is no sound."""
    whole: list[diffusion.Table] | None = None
    """Where `tables` are parts, all of each: what shares of the evaluations are counted in."""
    steps: int = STEPS
    """Of sampling, where no list says where they are."""
    along: np.ndarray | None = None
    """float[images, frames]: the share of `guidance_scale` that each frame of a clip has."""

    @property
    def branches(self) -> int:
        """Predictions that an evaluation takes for each image."""
        return self.texts.texts.shape[1]

    def tables_of(self, numbers: np.ndarray) -> diffusion.Table:
        """Those of the images with these numbers, stacked to one length for all batches."""
        # The longest is there for its length.
        longest = diffusion.stacked([self.tables[0], *self.each_table(numbers)])
        return jax.tree.map(lambda leaf: leaf[1:], longest)

    def each_table(self, numbers: np.ndarray, whole: bool = False) -> list[diffusion.Table]:
        """The table of each of the images with these numbers, or all of it where it is a part."""
        tables = self.whole if whole and self.whole is not None else self.tables
        return [tables[i] for i in self.schedule[numbers]]


def plan(
    asked: Request, scheduler: Mapping, unet, vae, encoders, guidance_scale: float, dtype,
    motion: MotionConfig | None = None, vocoder=None,
) -> Plan:
    """How a model carries a request out; SdjaxError where it cannot.

    scheduler: its scheduler_config.json. unet, vae, encoders: the configurations of its networks.
    guidance_scale: its own. dtype: what the networks compute in. motion: its motion modules'.
    vocoder: that of a model of sound.
    """
    kind = conditions.kind_of_channels(unet, vae)
    for name in ("prompt_2", "negative_prompt_2"):
        if getattr(asked, name) is not None and len(encoders) == 1:
            raise SdjaxError(f"this model has one text encoder: leave {name} out")
    asked, factor = canvas.prepared(asked), vae.downsampling
    moves = kind == conditions.MOVE
    if asked.unsaid and not moves:
        raise SdjaxError("prompt is missing: say what to make, in words")
    if moves and asked.frames is None:
        asked = copy.copy(asked)
        asked.frames = unet.num_frames
    _check_given(asked, kind)
    samples = None
    if vocoder is not None:
        sounds.check(asked)
        rows = unet.sample_size[0] if isinstance(unet.sample_size, tuple) else unet.sample_size
        bins = vocoder.model_in_dim
        frames, samples = sounds.length(asked.seconds, rows or bins, vocoder, bins, factor)
        size = frames, bins
    elif asked.seconds is not None:
        raise SdjaxError("seconds is for models of sound: leave it out")
    else:
        size = _size(asked, kind, unet, factor)
    shape = (*(side // factor for side in size), vae.latent_channels)
    seen = tiling(asked.tile, asked.windows, asked.vae_tile, size, factor)
    if asked.reuse_every is not None and (asked.windows is not None or asked.frames is not None):
        raise SdjaxError("reuse_every goes without windows and clips: leave one of them out")
    if asked.frames is None and asked.frame_windows is not None:
        raise SdjaxError("frame_windows is for clips: give frames= too")
    if asked.frames is not None:
        clips.check(asked, kind, motion)
        shape, seen = (asked.frames, *shape), clips.seen(asked, seen, shape)
    elif asked.first_guidance_scale is not None:
        raise SdjaxError("first_guidance_scale is for the first frame of clips: give frames= too")
    if asked.vae_frames is not None:
        if not getattr(vae, "temporal", False):
            raise SdjaxError("vae_frames is for an autoencoder of clips: this one has pictures")
        seen = seen._replace(frames=asked.vae_frames)
    check_room(asked, size, shape, unet, vae, dtype, seen)
    given = _conditions(asked, kind, vae, size)
    layers = min((encoder.num_hidden_layers for encoder in encoders), default=1)
    if asked.clip_skip >= layers:
        raise SdjaxError(
            f"clip_skip must be less than the text encoder's {layers} layers, got {asked.clip_skip}"
        )
    steps = steps_of(asked, scheduler, first_frame.STEPS if moves else STEPS)
    ways = _ways(given, asked, scheduler, unet, steps)
    different = sorted(set(ways), key=lambda way: way[0] or 0)
    tables = [
        diffusion.sampler_from_config(
            scheduler, steps, asked.sampler, start=start, **asked.options, **dict(rest)
        )
        for start, rest in different
    ]
    schedule = np.array([different.index(way) for way in ways])
    in_turn = diffusion.drawn_in_turn(scheduler, asked.sampler)
    source = noise_source(asked.noise, tables, in_turn)
    if source == "torch" and math.prod(shape) < BLOCK:
        raise SdjaxError(
            f"pictures of {size[1]}x{size[0]} pixels have {math.prod(shape)} latents, of which "
            f'PyTorch draws {BLOCK} at once: ask for larger ones, or take noise="jax"'
        )
    if asked.latents is not None and asked.latents.shape != (asked.total, *shape):
        raise SdjaxError(
            f"latents must have shape {(asked.total, *shape)}, got {asked.latents.shape}"
        )
    scale = _each(asked, "guidance_scale", guidance_scale)
    # As diffusers has it, and with it those who publish distilled models.
    scale = np.where(scale == 0, 1.0, scale)
    first, along = asked.first_guidance_scale, None
    first = first_frame.FIRST_GUIDANCE_SCALE if moves and first is None else first
    if first is not None:
        along = np.linspace(np.full(len(scale), first), scale, asked.frames, axis=1) / scale[:, None]
    said = [prompts.parts(prompt, asked.weighting) for prompt in asked.prompt]
    # A distilled network takes the scale as an input and is evaluated once as well.
    distilled = unet.time_cond_proj_dim is not None
    off = scale == 1 if first is None else (scale == 1) & (first == 1)
    guided = (not off.all() and not distilled) or bool(asked.regions) or any(
        [part.weight for part in own] != [1.0] for own in said
    )  # fmt: skip
    negatives = guided * (2 if kind == conditions.EDIT else 1)
    evaluations = [tables[i].evaluations for i in schedule]
    groups = [said, *(
        [prompts.parts(text, asked.weighting) for text in region.prompts(len(said))]
        for region in asked.regions
    )]  # fmt: skip
    texts = prompts.read(asked, groups, negatives, evaluations, max(1, len(encoders)))
    fields, frame = None, given.frame
    if asked.regions:
        own = asked.regions if frame is None else frame.regions(asked.regions, len(said))
        fields = regions.fields(own, size, factor, len(said), asked.total)
    if negatives == 2 and asked.guidance_rescale:
        raise SdjaxError("guidance_rescale is not known for models that edit a picture: leave it 0")
    previews.check_fits(asked.preview, vae.latent_channels)
    controls, controlled = [], []
    for i, control in enumerate(asked.controls):
        control.check(unet, factor, size)
        name, count = f"controls {i}: picture", len(control.picture)
        if asked.frames is not None and control.acts != "references":
            which = clips.chosen(name, count, asked.frames, asked.total)
        else:
            which = inputs.chosen(name, count, len(asked.prompt), asked.total)
        if frame is not None:
            control, which = frame.steered(control, which)
        controls.append(control)
        controlled.append(which)
    branches = texts.texts.shape[1]
    ids = told.time_ids(asked, unet, encoders, size, negatives, branches)
    ids = first_frame.told(asked, branches) if moves else ids
    return Plan(
        tables, schedule, size, Outer(shape) if moves else shape, source, scale, distilled,
        negatives, texts, ids, given, controls, controlled, fields, seen, asked.frames, samples,
        steps=steps or STEPS, along=along,
    )  # fmt: skip


def steps_of(asked: Request, scheduler: Mapping, default: int = STEPS) -> int | None:
    """The steps of sampling; None where a list says where they are.

    scheduler: a scheduler_config.json, whose `_steps` says how many a distilled model wants.
    """
    own = scheduler.get(OWN_STEPS, default)
    if isinstance(own, bool) or not isinstance(own, int) or own < 1:
        raise SdjaxError(
            f"{OWN_STEPS} of the scheduler's configuration must be a whole number from 1 on, got "
            f"{own!r}"
        )
    lists = (asked.options.get(name) for name in ("timesteps", "sigmas"))
    if asked.steps is None and all(given is None or isinstance(given, str) for given in lists):
        return own
    return asked.steps


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
        *((name, conditions.MOVE) for name in first_frame.ARGUMENTS),
    ):
        if getattr(asked, name) is not None and kind != wanted:
            told = f"this model takes no {name}" if name == "depth" else f"{name} is"
            raise SdjaxError(f"{told} for models that {_DOES[wanted].replace('s ', ' ', 1)}")
    for name in ("extend", "mask", "strength"):
        wholly = kind in (conditions.EDIT, conditions.UPSCALE, conditions.MOVE)
        if wholly and getattr(asked, name) is not None:
            raise SdjaxError(f"this model {_DOES[kind]} as a whole: it takes no {name}")


def _size(asked: Request, kind: str | None, unet, factor: int) -> tuple[int, int]:
    """Height and width of the result in pixels."""
    given = inputs.size_of(asked.image[0]) if asked.image else None
    if kind == conditions.UPSCALE:
        if asked.height is not None or asked.width is not None:
            raise SdjaxError(f"this model enlarges a picture {factor} times: leave the size out")
        return tuple(factor * side for side in given)
    if asked.extend is not None and given != inputs.fitting(given, factor):
        raise SdjaxError(
            f"extend makes a picture of {given[1]}x{given[0]} pixels: expected multiples of "
            f"{factor}"
        )
    if given is not None:
        trained = tuple(side // factor for side in inputs.fitting(given, factor))
    else:
        trained = unet.sample_size or 512 // factor
    return image_size(asked.height, asked.width, trained, factor)


def _conditions(asked: Request, kind: str | None, vae, size: tuple[int, int]) -> Conditions:
    """The pictures of a request at the model's size."""
    small = tuple(side // vae.downsampling for side in size)
    depth = frame = None
    if asked.only_masked is None:
        moving = asked.frames is not None and kind is None
        image = _pictures("image", asked, small if kind == conditions.UPSCALE else size, moving)
        mask = _pictures("mask", asked, size)
    else:
        image, mask, frame = crop.cropped(asked, size)
    if mask is not None and not (mask.arrays >= 0.5).any(axis=(1, 2)).all():
        raise SdjaxError("mask is black everywhere: paint white what is to be repainted")
    if asked.depth is not None:
        maps = asked.depth
        which = inputs.chosen("depth", len(maps), len(asked.prompt), asked.total)
        if frame is not None:
            maps = [Image.fromarray(np.float32(one)) for one in maps]
            maps, which = frame.crops("depth", maps, which)
        maps = [conditions.depths(np.asarray(one)[None], small) for one in maps]
        depth = Pictures(np.concatenate(maps), which)
    starts = image is not None and mask is None and kind in (None, conditions.DEPTH)
    strength = _each(asked, "strength", STRENGTH if starts else 1.0)
    scale, level = asked.image_guidance_scale, asked.noise_level
    return Conditions(
        kind,
        image,
        mask,
        depth,
        strength,
        IMAGE_GUIDANCE_SCALE if scale is None else scale,
        conditions.NOISE_LEVEL if level is None else level,
        first_frame.NOISE if asked.noise_augmentation is None else asked.noise_augmentation,
        random=not isinstance(vae, TinyVAEConfig),
        frame=frame,
    )


def _pictures(
    name: str, asked: Request, size: tuple[int, int], moving: bool = False
) -> Pictures | None:
    """An argument's pictures, resized; `moving` those of the frames of clips."""
    given = getattr(asked, name)
    if given is None:
        return None
    if moving:
        which = clips.chosen(name, len(given), asked.frames, asked.total)
    else:
        which = inputs.chosen(name, len(given), len(asked.prompt), asked.total)
    if name == "mask":
        for mask, image in zip(given, _cycled(asked.image, len(given)), strict=True):
            inputs.check_same_shape(mask, image)
    return Pictures(np.stack([inputs.resized(name, one, size) for one in given]), which)


def _cycled(items: list, count: int) -> list:
    return [items[i % len(items)] for i in range(count)]


def _ways(
    given: Conditions, asked: Request, scheduler: Mapping, unet, steps: int | None
) -> list[tuple[int | None, tuple]]:
    """How the table of each image begins: (steps left out or None, more options of its sampler)."""
    # Latent consistency models lay all steps out anew below the noise of a picture to start from,
    # as in diffusers' pipeline, and leave none of them out.
    chosen = diffusion.sampler_name(scheduler, asked.sampler)
    below = unet.time_cond_proj_dim is not None and "strength" in option_names(chosen)
    count, ways = step_count(steps, asked.options), []
    for strength, from_image in zip(given.strength, given.starts_from_image, strict=True):
        if not from_image:
            ways.append((None, ()))
        elif below:
            ways.append((None, (("strength", float(strength)),)))
        else:
            ways.append((_first_step(strength, count), ()))
    return ways


def _first_step(strength: float, steps: int) -> int:
    """How many steps are left out before a start from a picture, as diffusers counts them."""
    taken = min(int(steps * strength), steps)
    if taken < 1:
        raise SdjaxError(
            f"strength {strength:g} leaves none of {steps} steps: the least that leaves one "
            f"is {1 / steps:.3g}"
        )
    return steps - taken


def _each(asked: Request, name: str, default: float) -> np.ndarray:
    """float[images] of an argument that is one number, one a prompt or one an image."""
    given = getattr(asked, name)
    given = np.atleast_1d(default if given is None else given)
    return given[inputs.chosen(name, len(given), len(asked.prompt), asked.total)]


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
            raise SdjaxError(
                f"{name} must be a multiple of {factor}, got {side}; the nearest is "
                f"{nearest(side, factor)}"
            )
    return size


def nearest(side: float, factor: int) -> int:
    """The multiple of `factor` that is nearest, in pixels."""
    return max(1, round(side / factor)) * factor
