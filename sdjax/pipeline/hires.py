"""Pictures made small, enlarged, and refined from there: image to image after a first pass."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.pipeline import run
from sdjax.pipeline.compiled import coding
from sdjax.pipeline.given import conditions, inputs
from sdjax.pipeline.given.conditions import Pictures
from sdjax.pipeline.plans import handoff
from sdjax.pipeline.plans.handoff import Leg
from sdjax.pipeline.plans.plan import nearest
from sdjax.pipeline.plans.request import Request
from sdjax.pipeline.results.pictures import to_pictures
from sdjax.pipeline.run import Encoded, Latents

STRENGTH = 0.7
"""Of the second pass, where none is given, as in A1111."""


def passes(model, asked: Request) -> list[list[Leg]]:
    """The models and requests of each pass in turn; SdjaxError where they cannot be carried out.

    There is one, or with `hires` a second one, whose image is still blank: see `onto`.
    """
    if asked.hires is None:
        for name in ("hires_strength", "hires_steps", "hires_by"):
            if getattr(asked, name) is not None:
                raise SdjaxError(f"{name} is for hires, which is missing: give both")
        return [handoff.legs(model, asked)]
    kind = conditions.kind_of_channels(model.unet.config, model.vae.config)
    if kind in (conditions.EDIT, conditions.UPSCALE):
        raise SdjaxError("hires is for models that go on from a picture: this one takes no strength")
    for name in ("extend", "only_masked"):
        if getattr(asked, name) is not None:
            raise SdjaxError(f"hires does not go with {name}: enlarge the result in another call")
    if asked.mask is not None and _in_latents(asked):
        raise SdjaxError('hires in latents knows no mask: give hires_by="lanczos"')
    seeds = {"seed": [int(seed) for seed in asked.seeds]}
    # The checker sees the result alone.
    changes = {"output": "latents" if _in_latents(asked) else "numpy", "safety_checker": None}
    first = handoff.legs(model, dataclasses.replace(asked, **seeds, **changes))
    factor = model.vae.config.downsampling
    size = [nearest(asked.hires * side, factor) for side in first[0].planned.size]
    blank = Image.new("RGB", tuple(size[::-1]))
    strength = STRENGTH if asked.hires_strength is None else asked.hires_strength
    changes = {
        "image": [blank], "strength": strength, "steps": asked.hires_steps or asked.steps,
        "height": size[0], "width": size[1], "latents": None,
    }  # fmt: skip
    second = handoff.legs(model, dataclasses.replace(asked, **seeds, **changes))
    for steering in asked.controls:
        if steering.acts != "references":  # which have a size of their own
            steering.resized(tuple(size))  # refused now rather than after the first pass
    return [first, second]


def _in_latents(asked: Request) -> bool:
    return (asked.hires_by or "latent").startswith("latent")


def onto(
    legs: Sequence[Leg], encoded: Sequence[Encoded], made: np.ndarray, numbers: np.ndarray
) -> tuple[list[Leg], list[Encoded]]:
    """The second pass with what the first made of the images with these numbers, enlarged.

    made: latents or pixels [N, …].
    """
    model, asked, planned = legs[0]
    which = np.zeros(asked.total, int)
    which[numbers] = np.arange(len(numbers))
    if _in_latents(asked):
        large = enlarged(made, planned.shape[:2], asked.hires_by or "latent")
        z = coding.unscaled(model.vae.config, large)
        pictures, latents = None, Latents(z, np.zeros_like(z), which)
    else:
        pictures = Pictures(enlarged(made, planned.size, asked.hires_by), which)
        latents = run.latents_of(model, planned.tiling, pictures)
    whole, whole_encoded = [], []
    for (model, asked, planned), own in zip(legs, encoded, strict=True):
        given = planned.conditions
        if given.image is not None:
            # Latents are given, not drawn around a mean.
            given = dataclasses.replace(
                given, image=pictures or given.image, random=given.random and pictures is not None
            )
            masked = own.masked
            if given.kind == conditions.INPAINT:
                masked = run.latents_of(model, planned.tiling, given.masked())
            own = own._replace(image=latents, masked=masked)
        whole.append(Leg(model, asked, planned._replace(conditions=given)))
        whole_encoded.append(own)
    return whole, whole_encoded


def enlarged(made: np.ndarray, size: tuple[int, int], by: str) -> np.ndarray:
    """Latents [N, h, w, C] or pixels [N, H, W, 3] in [-1, 1] at another height and width.

    by: "latent", "latent-bicubic" and "latent-nearest" as PyTorch interpolates (bilinearly for the
    first); "lanczos", "bicubic", "bilinear" and "nearest" as Pillow does, pictures of 8 bits.
    """
    if by.startswith("latent"):
        kernel = by.partition("-")[2] or "bilinear"
        sides = zip(made.shape[1:3], size, strict=True)
        rows, columns = (conditions.interpolation(*side, kernel) for side in sides)
        return np.float32(np.einsum("hi,nijc,wj->nhwc", rows, made, columns))
    way = Image.Resampling[by.upper()]
    pictures = to_pictures(made, range(len(made)))
    return np.stack([inputs.resized("image", one, tuple(size), way) for one in pictures])
