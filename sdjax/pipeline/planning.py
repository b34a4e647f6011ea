"""What making pictures takes of a device that need not be there."""

import dataclasses
import types
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax import absent
from sdjax.chips import least_seconds
from sdjax.errors import SdjaxError
from sdjax.pipeline import run
from sdjax.pipeline.compiled import arrays, coding
from sdjax.pipeline.compiled.program import Program
from sdjax.pipeline.model.configurations import Configurations, configurations
from sdjax.pipeline.model.files import GUIDANCE_SCALE
from sdjax.pipeline.plans.plan import plan
from sdjax.pipeline.plans.request import Request
from sdjax.text.encode import Embedded
from sdjax.weights.parts import VAE, UNet, text_shapes, unet_shapes, vae_shapes
from sdjax.weights.published import PUBLISHED


class Making(NamedTuple):
    """A request without weights and prompts, as it is compiled."""

    program: Program
    params: dict[str, Any]
    """Shapes of what the program takes."""
    idle: int
    """Bytes of the model's other parameters."""
    evaluations: int
    """Of the U-Net, for each picture."""


class Estimate(NamedTuple):
    """What a batch of pictures takes; bytes and operations are those of one device."""

    chip: str
    devices: int
    images: int
    """On all devices."""
    evaluations: int
    parameters: int
    """Bytes of all parts of the model."""
    data: int
    """Bytes of latents, embedded prompts and pictures."""
    temporary: int | None
    """The greater of what the sampler and the decoder make; None where nothing was compiled."""
    flops: float
    accessed: float | None

    @property
    def memory(self) -> int:
        """Bytes in all, as far as known."""
        return self.parameters + self.data + (self.temporary or 0)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that the batch takes at least, for each of what it needs."""
        return least_seconds(self.chip, self.flops, self.accessed)


def request(found: Configurations, count: int, inpaint: bool = False, **settings) -> Request:
    """A request of `count` pictures of one size; settings: of `Request`.

    inpaint: a part of a picture is repainted. SdjaxError where the model needs other pictures, or
    a size that none has.
    """
    if inpaint:
        vae, unet = found.parts["vae"], found.parts["unet"]
        side = vae.downsampling * int(np.max(unet.sample_size))
        size = tuple(settings.get(name) or side for name in ("height", "width"))
        settings["image"] = np.zeros((*size, 3), np.uint8)
        settings["mask"] = np.full(size, 255, np.uint8)
    return Request("", count=count, output="numpy", **settings)


def making(found: Configurations, asked: Request, dtype) -> Making:
    """How a model carries a request out. dtype: of all its parts.

    Prompts are embedded, and pictures encoded, before: here they are shapes. Raises SdjaxError for
    a request that the model cannot carry out.
    """
    parts = found.parts
    unet, vae = UNet(parts["unet"], dtype), VAE(parts["vae"], dtype)
    texts = [config for part, config in parts.items() if part.startswith("text")]
    planned = plan(
        asked, found.scheduler, unet.config, vae.config, texts, GUIDANCE_SCALE, unet.dtype
    )
    shape = (asked.total, planned.branches, 1)
    width, length = unet.config.cross_attention_dim, texts[0].max_position_embeddings
    pooled = None
    if unet.config.addition_embed_type == "text_time":
        pooled = np.zeros((*shape, texts[-1].projection_dim), dtype)
    which = np.zeros(asked.total, int)
    latents = run.Latents(*np.zeros((2, 1, *planned.shape), np.float32), which)
    embedded = Embedded(np.zeros((*shape, length, width), dtype), pooled)
    encoded = run.Encoded(embedded, latents, latents, controls=[])
    model = types.SimpleNamespace(unet=unet, vae=vae)
    inputs = run.inputs_of(model, asked, planned, encoded, np.arange(asked.total))

    def shapes(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)

    params = {"unet": shapes(unet_shapes(unet.config)), "vae": shapes(vae_shapes(vae.config)),
              "controls": ()}  # fmt: skip
    idle = sum(size(shapes(text_shapes(text))) for text in texts)
    program = Program(arrays.Networks(unet), arrays.Coder(vae), False, inputs)
    return Making(program, params, idle, planned.tables[0].evaluations)


def estimate(
    source: str, topology: str, count: int, dtype, compiled: bool = True, inpaint: bool = False,
    **settings,
) -> Estimate:  # fmt: skip
    """What `count` pictures take of "v5e:2x4", "h100:8" or "cpu", each device making its share.

    source: a model's folder or file, or a name of `sdjax.weights.published`; weights are not read.
    inpaint, settings: as of `request`; a published model has the 9 channels of its kind that
    repaints. The sampler's program and the decoder's are compiled apart, as `generate` does, for
    one device, which has the whole model; where nothing is compiled, operations are those of the
    programs as they are written. Raises SdjaxError for a topology that is none, and for what the
    model cannot carry out.
    """
    place = absent.place(topology, compiled)
    if count % place.count:
        raise SdjaxError(
            f"{count} pictures cannot be split over {place.count} devices: choose a multiple of "
            f"{place.count}"
        )
    known = configurations(source)
    if inpaint and source in PUBLISHED:
        unet = dataclasses.replace(known.parts["unet"], in_channels=9)
        known.parts["unet"] = unet
    asked = request(known, count // place.count, inpaint, **settings)
    found = making(known, asked, dtype)
    program, params = found.program, found.params
    alone = dataclasses.replace(program, coder=None)

    def decode(vae, latents):
        return coding.latents_to_pixels(program.coder, vae, latents)

    platform = {"cpu": "cpu"}.get(place.chip, "tpu" if place.compiles else "gpu")
    loop, decoder = (
        absent.cost(function, *given, device=place.devices[0], platform=platform,
                    compiled=place.compiles)
        for function, given in (
            (alone, (params, program.inputs)), (decode, (params["vae"], program.inputs.latents)))
    )  # fmt: skip
    often = found.evaluations  # the compiler counts a loop's body once
    return Estimate(
        place.chip, place.count, count, often,
        parameters=size(params) + found.idle, data=size(program.inputs) + decoder.outputs,
        temporary=max(loop.temporary, decoder.temporary) if place.compiles else None,
        flops=often * loop.flops + decoder.flops,
        accessed=often * loop.accessed + decoder.accessed if place.compiles else None,
    )  # fmt: skip


def size(shapes) -> int:
    """Bytes of a tree of shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
