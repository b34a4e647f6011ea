"""A batch of a planned request, carried out: arrays on the host, programs on the devices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax import diffusion
from sdjax.pipeline.compiled import arrays, coding, places, programs, sizes, sounding
from sdjax.pipeline.compiled.once import one_a_device
from sdjax.pipeline.compiled.progress import Advance, Look, carry_out
from sdjax.pipeline.given import conditions, first_frame
from sdjax.pipeline.given.conditions import Pictures
from sdjax.pipeline.given.tiling import Tiling
from sdjax.pipeline.plans import canvas
from sdjax.pipeline.plans.draws import draw, key_data, varied
from sdjax.pipeline.plans.handoff import Leg, continued
from sdjax.pipeline.plans.plan import Plan
from sdjax.pipeline.plans.request import Request
from sdjax.pipeline.results import previews
from sdjax.pipeline.steering.base import Steering
from sdjax.text.chunks import Weighting, chunked
from sdjax.text.encode import Embedded


class Latents(NamedTuple):
    """The autoencoder's latents of pictures, not scaled, and which of them each image takes."""

    mean: np.ndarray
    """float32 [P, h, w, C]."""
    std: np.ndarray
    which: np.ndarray

    def of(self, numbers: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """A draw [N, h, w, C] for the images with these numbers, the mode without noise."""
        which = self.which[numbers]
        return self.mean[which] if noise is None else self.mean[which] + self.std[which] * noise


class Encoded(NamedTuple):
    """What of a request is the same for all its batches, made once."""

    prompt: Embedded
    """Leaves [images, B, T, …] for B branches of T texts."""
    image: Latents | None
    masked: Latents | None
    controls: list
    """What each of the plan's `controls` makes of its pictures."""


def encode(model, asked: Request, planned: Plan, pictures: bool = True) -> Encoded:
    """Embeds the texts of a request, and the pictures unless told otherwise."""
    given = planned.conditions if pictures else conditions.Conditions()
    latents = given.image is not None and given.kind not in (conditions.UPSCALE, conditions.MOVE)
    if given.kind == conditions.MOVE:
        prompt = seen(model, asked, planned)
    else:
        prompt = embedded(model, planned.texts.texts, asked.weighting, asked.clip_skip)
    return Encoded(
        prompt,
        latents_of(model, planned.tiling, given.image) if latents else None,
        latents_of(model, planned.tiling, given.masked())
        if given.kind == conditions.INPAINT
        else None,
        [one.encoded(planned.size, planned.tiling.tile) for one in planned.controls],
    )


def embedded(model, texts: np.ndarray, weighting: Weighting | None, skip: int) -> Embedded:
    """Embeddings […, L, D] and […, P] of texts […] as `Texts` has them, on the host.

    Each text is embedded once, a fixed number at a time: one program for all of as many chunks. The
    chunks of each are then repeated until all have the same number, see `chunked`.
    """
    different, nothing = list(dict.fromkeys(texts.ravel())), [""] * len(model.tokenizers)
    if model.vocoder is not None:
        made = vectors(model, [(text or nothing)[0] for text in different])
        return _of_each(texts, different, made)
    read = [
        chunked([[one] for one in text or nothing], model.tokenizers, weighting)
        for text in different
    ]
    counts = np.array([chunks[0].ids.shape[1] for chunks in read])
    keep = np.float32([text is not None or not model.zero_negative for text in different])
    run = places.compiled(
        coding.prompts_to_embeddings, model.text_encoders, weighting, skip, in_axes=(None, 0),
        on=model.place,
    )
    params = model.place.placed(tuple(model.params[part] for part in model.encoder_parts))
    total, rows, made = math.lcm(*map(int, counts)), [], []
    for count in np.unique(counts):
        some = np.flatnonzero(counts == count)
        chunks = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[read[i] for i in some])
        given = arrays.Prompts(chunks, keep[some])
        done = one_a_device(lambda now: run(params, now), given, model.place)
        made.append(done._replace(context=np.tile(done.context, (1, total // int(count), 1))))
        rows.extend(some)
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *made)
    return _of_each(texts, [different[i] for i in rows], whole)


def _of_each(texts: np.ndarray, different: Sequence, made: Embedded) -> Embedded:
    """What was made of the different texts for each of `texts`."""
    place = np.vectorize(different.index, otypes=[int])(texts)
    return jax.tree.map(lambda leaf: leaf[place], made)


def vectors(model, texts: Sequence[str]) -> Embedded:
    """A vector for each text, of a model of sound."""
    (encoder,), (tokenizer,), (part,) = model.text_encoders, model.tokenizers, model.encoder_parts
    run = places.compiled(sounding.ids_to_vectors, encoder, in_axes=(None, 0), on=model.place)
    params = model.place.placed(model.params[part])
    return one_a_device(lambda some: run(params, some), tokenizer.encode(texts), model.place)


def seen(model, asked: Request, planned: Plan) -> Embedded:
    """Embeddings of the pictures that clips move, in the place of prompts: [images, B, 1, 1, D].

    Zeros of the first branch where there are two.
    """
    side = model.image_encoder.config.image_size
    pictures = np.stack([first_frame.for_clip(picture, side) for picture in asked.image])
    run = places.compiled(
        coding.pictures_to_embeddings, model.image_encoder, in_axes=(None, 0), on=model.place
    )
    params = model.place.placed(model.params["image_encoder"])
    made = one_a_device(lambda some: run(params, some), pictures, model.place)
    made = made[planned.conditions.image.which][:, None, None, None]
    shown = np.arange(planned.branches) >= planned.negatives
    return Embedded(made * np.float32(shown).reshape(-1, 1, 1, 1))


def coder(model, tiling: Tiling) -> arrays.Coder:
    """A model's autoencoder as it sees pictures."""
    return arrays.Coder(tiling.vae(model.vae), tiling.tiles, tiling.frames)


def latents_of(model, tiling: Tiling, pictures: Pictures) -> Latents:
    """The latents of pictures, each encoded once."""
    run = places.compiled(
        coding.pixels_to_moments, coder(model, tiling), in_axes=(None, 0), on=model.place
    )
    params = model.place.placed(model.params["vae"])
    mean, std = one_a_device(lambda some: run(params, some), pictures.arrays, model.place)
    return Latents(mean, std, pictures.which)


def batch(
    legs: Sequence[Leg], encoded: Sequence[Encoded], numbers: np.ndarray, advance: Advance | None
) -> np.ndarray | sounding.Heard:
    """Latents or pixels [N, …] of the images with these numbers, or their sound.

    encoded: of each leg.
    """
    count, result = len(numbers), None
    for i, (leg, own) in enumerate(zip(legs, encoded, strict=True)):
        model, asked, planned = leg
        made = inputs_of(model, asked, planned, own, numbers)
        if i:
            latents = places.joined(result, place, count)
            made = continued(legs[i - 1], leg, made, latents, numbers)
        place = places.place(count, planned.branches, model.place)
        look = None
        if asked.preview is not None:
            vae, params = planned.tiling.vae(model.vae), model.place.placed(model.params["vae"])
            seeds = asked.seeds[np.unique(numbers)]  # without what fills a last batch up
            look = asked.preview.every, previews.shown(asked.preview, vae, params, place, seeds)
        moving = planned.frames is not None
        result = sampled(
            model, planned.controls, made, place, advance, planned.tiling, look, moving
        )
    if asked.output == "latents":
        return places.joined(result, place, count)
    if planned.samples is not None:
        made = jax.tree.map(lambda leaf: places.joined(leaf, place, count), heard(model, result))
        return made._replace(sound=made.sound[:, : planned.samples])
    pixels = places.joined(decoded(model, planned.tiling, result), place, count)
    given = planned.conditions
    if given.mask is None or not asked.paste:
        return pixels
    if given.frame is not None:
        return given.frame.pasted(pixels, numbers)
    return canvas.blended(pixels, given.image.of(numbers), given.mask.of(numbers))


def kind_of(legs: Sequence[Leg], encoded: Sequence[Encoded]) -> tuple:
    """What of a request chooses its programs, the number of images apart; hashable."""
    kind = []
    for (model, asked, planned), own in zip(legs, encoded, strict=True):
        inputs = inputs_of(model, asked, planned, own, np.arange(1))
        sources = tuple((one.acts, type(one.source)) for one in planned.controls)
        preview = None if asked.preview is None else asked.preview.every
        kind.append((
            model.unet, model.vae, model.vocoder, model.place, planned.tiling, sources, preview,
            asked.output == "latents", sizes.shapes(inputs),
        ))  # fmt: skip
    return tuple(kind)


def inputs_of(
    model, asked: Request, planned: Plan, encoded: Encoded, numbers: np.ndarray
) -> arrays.Inputs:
    """What the programs take for the images with these numbers."""
    given, shape = planned.conditions, planned.shape
    tables, table = planned.each_table(numbers), planned.tables_of(numbers)
    whole = planned.each_table(numbers, whole=True)
    seeds, count = asked.seeds[numbers], len(numbers)
    draws = [given.draws(number, shape, asked.latents is None) for number in numbers]
    drawn, added = draw(seeds, tables, planned.source, draws, shape)
    start = drawn["start"] if asked.latents is None else asked.latents[numbers]
    if asked.variations is not None:
        others = asked.variations[numbers]
        start = varied(start, others, asked.variation_strength, planned.source, shape)
    begun, kept = given.starts_from_image[numbers], None
    if begun.any() or given.keeps:
        z = encoded.image.of(numbers, drawn.get("image"))
        x_0 = coding.scaled(model.vae.config, z)
        if given.keeps:
            mask = conditions.corners(given.mask.of(numbers) >= 0.5, model.vae.config.downsampling)
            kept = arrays.Kept(np.float32(mask), x_0, start)
        if begun.any():
            noised = table.noised(x_0, start)
            start = np.where(begun.reshape(-1, *(1,) * len(shape)), noised, start)
    rows = table.rows.kind.shape[-1]
    if added is not None:
        added = np.pad(added, [(0, 0), (0, rows - added.shape[1]), *[(0, 0)] * len(shape)])
    which, ids = planned.texts.which[numbers], planned.time_ids
    branches = arrays.Branches(
        prompt=jax.tree.map(lambda leaf: leaf[numbers], encoded.prompt),
        which=np.pad(which, [(0, 0), (0, 0), (0, rows - which.shape[2])]),
        time_ids=None if ids is None else np.tile(ids, (count, 1, 1)),
        channels=channels(model, planned, encoded, numbers, drawn),
        **steered(planned, encoded, numbers, whole, rows),
    )
    label = given.noise_level if given.kind == conditions.UPSCALE else None
    images = arrays.Images(
        keys=key_data(seeds),
        noise=added,
        branches=branches,
        weights=weights(planned, numbers),
        guidance_scale=np.float32(planned.guidance_scale[numbers]),
        labels=None if label is None else np.full(count, label, np.int32),
        kept=kept,
    )
    reuse = None if asked.reuse_every is None else np.int32(asked.reuse_every)
    settings = arrays.Settings(table, np.float32(asked.guidance_rescale), reuse)
    return arrays.Inputs(start, settings, images)


def steered(
    planned: Plan, encoded: Encoded, numbers: np.ndarray, tables, rows: int
) -> dict[str, tuple]:
    """The fields of `arrays.Branches` that the pictures of the plan's `controls` fill."""
    fields: dict[str, tuple] = {"controls": (), "features": (), "references": ()}
    counts = planned.branches, planned.negatives
    for one, made, shown in zip(planned.controls, encoded.controls, planned.controlled, strict=True):
        fields[one.acts] += (one.arrays(made, shown[numbers], *counts, tables, rows),)
    return fields


def weights(planned: Plan, numbers: np.ndarray) -> np.ndarray | None:
    """What each branch after the first counts: float32 [N, B - 1, h or 1, w or 1, 1], of clips with
    an axis of one for their frames before those two."""
    if not planned.negatives:
        return None
    scales = planned.texts.shares[numbers]
    if not planned.distilled:
        scales = scales * planned.guidance_scale[numbers][:, None]
    scales = scales[..., None, None]
    if planned.fields is not None:
        scales = scales * planned.fields[numbers][:, planned.texts.groups]
    if planned.negatives == 2:  # Brooks et al. 2022, arXiv 2211.09800, equation 3
        of_image = planned.conditions.image_guidance_scale - scales.sum(axis=1, keepdims=True)
        scales = np.concatenate([of_image, scales], axis=1)
    if planned.frames is not None:
        scales = scales[:, :, None]
    if planned.along is not None:
        scales = scales * planned.along[numbers][:, None, :, None, None]
    return np.float32(scales)[..., None]


def channels(
    model, planned: Plan, encoded: Encoded, numbers: np.ndarray, drawn: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """What the U-Net is given beside the latents, float32 [N, B, h, w, K], or of clips with their
    frames."""
    given, vae = planned.conditions, model.vae.config
    if given.kind is None:
        return None
    shown = np.ones(planned.branches, np.float32)
    if given.kind == conditions.INPAINT:
        mask = conditions.corners(given.mask.of(numbers) >= 0.5, vae.downsampling)
        masked = coding.scaled(vae, encoded.masked.of(numbers, drawn.get("masked")))
        beside = np.concatenate([mask, masked], axis=-1)
    elif given.kind == conditions.EDIT:
        beside = encoded.image.of(numbers)
        shown[0] = planned.negatives < 2  # the first branch sees no picture
    elif given.kind == conditions.MOVE:
        noised = given.image.of(numbers) + np.float32(given.noise_augmentation) * drawn["pixels"]
        noised = conditions.Pictures(noised, np.arange(len(numbers)))
        beside = latents_of(model, planned.tiling, noised).mean
        beside = np.repeat(beside[:, None], planned.frames, axis=1)
        shown[: planned.negatives] = 0
    elif given.kind == conditions.DEPTH:
        beside = given.depth.of(numbers)
    else:
        schedule = diffusion.schedule_from_config(model.low_res_scheduler_config)
        small, noise = given.image.of(numbers), drawn["small"]
        beside = diffusion.add_noise(schedule, small, noise, given.noise_level)
    return np.float32(beside)[:, None] * shown.reshape(-1, *(1,) * (beside.ndim - 1))


def sampled(
    model, controls: Sequence[Steering], inputs: arrays.Inputs, place: places.Place,
    advance: Advance | None, tiling: Tiling, look: Look | None = None, moving: bool = False,
) -> jax.Array:  # fmt: skip
    """Latents [devices, n, h, w, C] of a batch."""
    networks, params = networks_of(model, controls, tiling, moving)
    deep = arrays.Deep.of(model.unet, inputs)
    if deep is not None and place.across:
        deep = deep._replace(branches=1)
    begin = places.compiled(programs.begin, deep, in_axes=(0, 0), on=place.on)
    sample = places.compiled(
        programs.noise_to_latents, networks, place.across, in_axes=(None, arrays.SPLIT, 0, 0),
        on=place.on,
    )
    start, settings, images = inputs
    # Put there once: a table carried out in parts takes them several times.
    images = jax.device_put(places.on_devices(images, place), place.on.split())

    def run(table, latents):
        return sample(params, settings._replace(table=table), images, latents)

    table = jax.tree.map(lambda leaf: leaf[place.rows], settings.table)
    begun = begin(table, start[place.rows])
    return carry_out(run, table, begun, advance, look).x


def networks_of(
    model, controls: Sequence[Steering], tiling: Tiling, moving: bool = False
) -> tuple[arrays.Networks, dict[str, Any]]:
    """The networks that sample, and their parameters; `moving` those of clips."""
    beside = [one.source for one in controls if one.acts == "controls"]
    networks = arrays.Networks(
        tiling.network(model.unet.clone(motion=model.motion if moving else None)),
        tuple(tiling.network(source.network) for source in beside),
        tiling.windows,
    )
    params = {
        "unet": model.params["unet"],
        "controls": tuple(source.params for source in beside),
    }
    return networks, model.place.placed(params)


def decoded(model, tiling: Tiling, latents: jax.Array) -> jax.Array:
    """Pixels [devices, n, H, W, 3] of latents [devices, n, h, w, C]."""
    decode = places.compiled(
        coding.latents_to_pixels, coder(model, tiling), in_axes=(None, 0), on=model.place
    )
    return decode(model.place.placed(model.params["vae"]), latents)


def heard(model, latents: jax.Array) -> sounding.Heard:
    """Sound, every array [devices, n, …], of latents [devices, n, h, w, C]."""
    decode = places.compiled(
        sounding.latents_to_sound, model.vae, model.vocoder, in_axes=(None, 0), on=model.place
    )
    params = {name: model.params[name] for name in ("vae", "vocoder")}
    return decode(model.place.placed(params), latents)
