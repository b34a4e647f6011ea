"""A batch of a planned request, carried out: arrays on the host, programs on the devices."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax import diffusion, parallel
from sdjax.pipeline import conditions, previews, programs
from sdjax.pipeline.conditions import Pictures
from sdjax.pipeline.control import Control
from sdjax.pipeline.draws import draw, key_data, varied
from sdjax.pipeline.plan import Plan
from sdjax.pipeline.progress import Advance, Look, carry_out
from sdjax.pipeline.request import Request
from sdjax.pipeline.tiling import Tiling
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
    """Leaves [images, B, 1, …] for B branches."""
    image: Latents | None
    masked: Latents | None


def encode(model, asked: Request, planned: Plan) -> Encoded:
    """Embeds the texts and the pictures of a request."""
    given = planned.conditions
    latents = given.image is not None and given.kind != conditions.UPSCALE
    return Encoded(
        embedded(model, branch_texts(asked, planned, len(model.tokenizers)), asked.clip_skip),
        latents_of(model, planned.tiling, given.image) if latents else None,
        latents_of(model, planned.tiling, given.masked())
        if given.kind == conditions.INPAINT
        else None,
    )


def branch_texts(asked: Request, planned: Plan, encoders: int) -> np.ndarray:
    """The texts of each branch of each image, one for each text encoder: [images, B].

    None is no prompt, for all encoders.
    """
    texts = np.empty((len(asked.prompt), planned.branches), object)
    texts[:, :-1] = _by_encoder(asked.negatives, asked.negatives_2, encoders)[:, None]
    texts[:, -1] = _by_encoder(asked.prompt, asked.prompts_2, encoders)
    return np.repeat(texts, asked.count, axis=0)


def _by_encoder(
    firsts: Sequence[str | None], seconds: Sequence[str | None], encoders: int
) -> np.ndarray:
    """For each prompt a text for each encoder; a second one is the first where it is None."""
    made = np.empty(len(firsts), object)
    for i, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        if first is not None or second is not None:
            first = first or ""
            made[i] = (first, first if second is None else second)[:encoders]
    return made


def embedded(model, texts: np.ndarray, skip: int) -> Embedded:
    """Embeddings [N, B, 1, …] of texts [N, B] of `branch_texts`, on the host.

    Each text is embedded once, a fixed number at a time: one program for any of them.
    """
    different = list(dict.fromkeys(texts.ravel()))
    rows = np.arange(len(different))
    run = programs.compiled(
        programs.prompts_to_embeddings, model.text_encoders, skip, in_axes=(None, 0)
    )
    params = parallel.placed(tuple(model.params[part] for part in model.encoder_parts))

    def some(numbers):
        now = [different[i] for i in numbers.ravel()]
        ids = tuple(
            tokenizer.encode([text[i] if text else "" for text in now]).reshape(
                *numbers.shape, -1
            )
            for i, tokenizer in enumerate(model.tokenizers)
        )
        dropped = np.array([text is None and model.zero_negative for text in now])
        return run(params, programs.Prompts(ids, np.float32(~dropped).reshape(numbers.shape)))

    flat = one_a_device(some, rows)
    place = np.vectorize(different.index, otypes=[int])(texts)
    return jax.tree.map(lambda leaf: leaf[place][:, :, None], flat)


def coder(model, tiling: Tiling) -> programs.Coder:
    """A model's autoencoder as it sees pictures."""
    return programs.Coder(tiling.vae(model.vae), tiling.tiles)


def latents_of(model, tiling: Tiling, pictures: Pictures) -> Latents:
    """The latents of pictures, each encoded once."""
    run = programs.compiled(programs.pixels_to_moments, coder(model, tiling), in_axes=(None, 0))
    params = parallel.placed(model.params["vae"])
    mean, std = one_a_device(lambda some: run(params, some), pictures.arrays)
    return Latents(mean, std, pictures.which)


def one_a_device(run, items: np.ndarray):
    """`run` on items [n, …], one for each device at a time: NumPy trees [n, …], one program."""
    devices, made = jax.local_device_count(), []
    for first in range(0, len(items), devices):
        numbers = np.minimum(np.arange(first, first + devices), len(items) - 1)
        done = run(items[numbers][:, None])
        made.append(jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], done))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(items)], *made)


def batch(
    model, asked: Request, planned: Plan, encoded: Encoded, numbers: np.ndarray,
    advance: Advance | None,
) -> np.ndarray:  # fmt: skip
    """Latents or pixels [N, …] of the images with these numbers."""
    count = len(numbers)
    made = inputs_of(model, asked, planned, encoded, numbers)
    place = programs.place(count, planned.branches)
    used = [one.control for one in asked.controls]
    look = None
    if asked.preview is not None:
        vae, params = planned.tiling.vae(model.vae), parallel.placed(model.params["vae"])
        seeds = asked.seeds[np.unique(numbers)]  # without what fills a last batch up
        look = asked.preview.every, previews.shown(asked.preview, vae, params, place, seeds)
    result = sampled(model, used, made, place, advance, planned.tiling, look)
    if asked.output == "latents":
        return programs.joined(result, place, count)
    pixels = programs.joined(decoded(model, planned.tiling, result), place, count)
    given = planned.conditions
    if given.mask is None or not asked.paste:
        return pixels
    painted = given.mask.of(numbers)[..., None]
    return np.where(painted > 0, painted * pixels, 0) + (1 - painted) * given.image.of(numbers)


def inputs_of(
    model, asked: Request, planned: Plan, encoded: Encoded, numbers: np.ndarray
) -> programs.Inputs:
    """What the programs take for the images with these numbers."""
    given, table, shape = planned.conditions, planned.table, planned.shape
    seeds, count = asked.seeds[numbers], len(numbers)
    draws = given.draws(shape, asked.latents is None)
    drawn, added = draw(seeds, table, planned.source, draws, shape)
    start = drawn["start"] if asked.latents is None else asked.latents[numbers]
    if asked.variations is not None:
        others = asked.variations[numbers]
        start = varied(start, others, asked.variation_strength, planned.source)
    kept = None
    if given.starts_from_image or given.keeps:
        z = encoded.image.of(numbers, drawn.get("image"))
        x_0 = programs.scaled(model.vae.config, z)
        if given.keeps:
            mask = conditions.corners(given.mask.of(numbers), model.vae.config.downsampling)
            kept = programs.Kept(mask, x_0, start)
        if given.starts_from_image:
            start = table.noised(x_0, start)
    places = (count, planned.branches)
    rows = len(table.rows.kind)
    ids = planned.time_ids
    branches = programs.Branches(
        prompt=jax.tree.map(lambda leaf: leaf[numbers], encoded.prompt),
        which=np.zeros((*places, rows), np.int32),
        time_ids=None if ids is None else np.tile(ids, (count, 1, 1)),
        channels=channels(model, planned, encoded, numbers, drawn),
        controls=tuple(
            one.arrays(planned.size, which[numbers], planned.branches, table)
            for one, which in zip(asked.controls, planned.controlled, strict=True)
        ),
    )
    label = given.noise_level if given.kind == conditions.UPSCALE else None
    images = programs.Images(
        keys=key_data(seeds),
        noise=added,
        branches=branches,
        weights=weights(planned, count),
        guidance_scale=np.full(count, planned.guidance_scale, np.float32),
        labels=None if label is None else np.full(count, label, np.int32),
        kept=kept,
    )
    settings = programs.Settings(table, np.float32(asked.guidance_rescale))
    return programs.Inputs(start, settings, images)


def weights(planned: Plan, count: int) -> np.ndarray | None:
    """What each branch after the first counts: float32 [N, B - 1, 1, 1, 1]."""
    if planned.branches == 1:
        return None
    scales = [planned.guidance_scale]
    if planned.branches == 3:  # Brooks et al. 2022, arXiv 2211.09800, equation 3
        scales.insert(0, planned.conditions.image_guidance_scale - planned.guidance_scale)
    return np.tile(np.float32(scales)[:, None, None, None], (count, 1, 1, 1, 1))


def channels(
    model, planned: Plan, encoded: Encoded, numbers: np.ndarray, drawn: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """What the U-Net is given beside the latents, float32 [N, B, h, w, K]."""
    given, vae = planned.conditions, model.vae.config
    if given.kind is None:
        return None
    shown = np.ones(planned.branches, np.float32)
    if given.kind == conditions.INPAINT:
        mask = conditions.corners(given.mask.of(numbers) >= 0.5, vae.downsampling)
        masked = programs.scaled(vae, encoded.masked.of(numbers, drawn.get("masked")))
        beside = np.concatenate([mask, masked], axis=-1)
    elif given.kind == conditions.EDIT:
        beside = encoded.image.of(numbers)
        shown[0] = planned.branches < 3  # the first branch sees no picture
    elif given.kind == conditions.DEPTH:
        beside = given.depth.of(numbers)
    else:
        schedule = diffusion.schedule_from_config(model.low_res_scheduler_config)
        small, noise = given.image.of(numbers), drawn["small"]
        beside = diffusion.add_noise(schedule, small, noise, given.noise_level)
    return np.float32(beside)[:, None] * shown[:, None, None, None]


def sampled(
    model, controls: list[Control], inputs: programs.Inputs, place: programs.Place,
    advance: Advance | None, tiling: Tiling, look: Look | None = None,
) -> jax.Array:  # fmt: skip
    """Latents [devices, n, h, w, C] of a batch."""
    begin = programs.compiled(programs.begin, in_axes=(None, 0))
    networks, params = networks_of(model, controls, tiling)
    sample = programs.compiled(
        programs.noise_to_latents, networks, place.across, in_axes=(None, None, 0, 0)
    )
    start, settings, images = inputs
    # Put there once: a table carried out in parts takes them several times.
    images = jax.device_put(programs.on_devices(images, place), parallel.split())

    def run(table, latents):
        return sample(params, settings._replace(table=table), images, latents)

    begun = begin(settings.table, start[place.rows])
    return carry_out(run, settings.table, begun, advance, look).x


def networks_of(
    model, controls: list[Control], tiling: Tiling
) -> tuple[programs.Networks, dict[str, Any]]:
    """The networks that sample, and their parameters."""
    networks = programs.Networks(
        tiling.network(model.unet),
        tuple(tiling.network(control.network) for control in controls),
        tiling.windows,
    )
    params = {
        "unet": model.params["unet"],
        "controls": tuple(control.params for control in controls),
    }
    return networks, parallel.placed(params)


def decoded(model, tiling: Tiling, latents: jax.Array) -> jax.Array:
    """Pixels [devices, n, H, W, 3] of latents [devices, n, h, w, C]."""
    decode = programs.compiled(
        programs.latents_to_pixels, coder(model, tiling), in_axes=(None, 0)
    )
    return decode(parallel.placed(model.params["vae"]), latents)
