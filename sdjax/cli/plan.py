"""`sdjax plan`: what a training, or pictures, take of hardware that need not be there."""

import inspect
import json as js
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from sdjax.errors import SdjaxError

from .common import parsed, prepare_devices
from .train import WORDS

_OF_PICTURES = "plan --model MODEL"


def plan(
    topology: str, config: Path | None = None, price: float | None = None, compile: bool = True,
    json: bool = False,
) -> tuple[str, Path | None, float | None, bool, bool]:
    """Compile a training step, or the making of pictures, for devices that need not be there.

    sdjax plan --config lora --model sd15 --topology v5e:2x4
    sdjax plan --model sdxl --topology v5e:2x4 --count 8 --steps 30

    With a recipe, an update of its training: every value of the recipe is an option, as of `train`.
    Without one, pictures by --model: see sdjax plan --model --help. Neither data nor weights are
    read. What is told are bounds: no program is faster than they say.

    Args:
        topology: The devices: v5e:2x4, v5p:…, v6e:16x16, for which the package libtpu compiles;
            h100:8 or a100:8, for which only sizes and operations are counted; or cpu, this machine.
        config: A recipe, as `train` takes it.
        price: Of one device for an hour, for the cost of a million images.
        compile: Whether the program is compiled for TPUs, which takes minutes to an hour for large
            models; without, sizes and operations are counted, as for GPUs.
        json: Print the figures as JSON.
    """
    return topology, config, price, compile, json


def pictures(
    model: str, count: int = 1, height: int | None = None, width: int | None = None,
    steps: int | None = None, sampler: str | None = None, guidance_scale: float | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16", vae_tile: int | None = None,
    inpaint: bool = False,
) -> dict[str, Any]:
    """What the pictures of one call of `generate` take, made by a model whose weights are not read.

    Args:
        model: A folder or file, or sd15, sd21, sdxl.
        count: Pictures at once, on all devices together.
        height: Of a picture, in pixels; the model's own where it is not given, as all that follows.
        width: The same.
        steps: Of sampling.
        sampler: By its name, such as dpmpp_2m.
        guidance_scale: How strongly the prompt steers; 1 halves the work.
        dtype: What the networks compute in and their parameters are kept in.
        vae_tile: Decode in tiles of this side, in pixels.
        inpaint: Repaint a part of a picture; published models have 9 channels then.
    """
    return dict(locals())


def run(arguments: list[str], program: str) -> int:
    """Reads the recipe's own options, or those of pictures, compiles, and prints a table."""
    own = {"config", "topology", "price", "compile", "json"}
    names = [a.split("=")[0] for a in arguments]
    helped = [a for a in ("-h", "--help") if a in names and "--model" in names]
    if helped and "--config" not in names:
        return parsed(pictures, ["--help"], program, words={}, name=_OF_PICTURES)
    recipe_names = {*own, *(n.split()[0] for n in WORDS.values())}
    (topology, config, price, compiled, as_json), rest = parsed(
        plan, arguments, program, words=WORDS,
        ours=recipe_names | {*inspect.signature(pictures).parameters},
        required=["--topology"], return_unknown_args=True,
    )  # fmt: skip
    from sdjax.chips import CHIPS
    from sdjax.pipeline.given.arguments import number

    if price is not None:
        number(0)("price", price)
    remedies = ()
    if config is None:
        found = _of_pictures(rest, program, topology, compiled)
    else:
        from sdjax.training.recipes import plan as planning
        from sdjax.training.recipes.recipe import load_config, with_overrides

        recipe = with_overrides(load_config(config), rest, f"{program} plan --config {config}")
        prepare_devices([recipe.diffusion.batch_size] if recipe.diffusion else [])
        found = planning.estimate(recipe, topology, compiled)
        remedies = planning.remedies(recipe, found)
    chip = CHIPS.get(found.chip)
    figures = _figures(found, chip, price)
    if chip is not None and found.memory > 0.95 * chip.memory and remedies:
        figures["remedies"] = remedies
    if as_json:
        print(js.dumps(figures, indent=2))
    else:
        _table(found, chip, figures, topology)
    return 0


def _of_pictures(arguments, program, topology, compiled):
    """The estimate of pictures; SdjaxError where no model is named either."""
    if not any(argument.split("=")[0] == "--model" for argument in arguments):
        raise SdjaxError("give --config for a training, or --model alone for making pictures")
    from sdjax.pipeline import planning
    from sdjax.weights.tensors import dtype_of

    asked = parsed(pictures, arguments, program, words={}, name=_OF_PICTURES)
    prepare_devices([asked["count"]])
    dtype = dtype_of(asked.pop("dtype"))
    return planning.estimate(
        asked.pop("model"), topology, asked.pop("count"), dtype, compiled, **asked
    )


def _figures(found, chip, price):
    bounds, evaluations = found.bounds, getattr(found, "evaluations", None)
    collectives = getattr(found, "collectives", ())
    figures = {
        "chip": found.chip, "devices": found.devices, "images_per_step": found.images,
        "bytes": {
            name: getattr(found, name)
            for name in ("parameters", "optimizer", "ema", "frozen", "data", "temporary", "memory")
            if hasattr(found, name)
        },
        "memory_of_chip": chip.memory if chip else None,
        "fits": found.memory <= chip.memory if chip and found.temporary is not None else None,
        "flops": found.flops, "bytes_accessed": found.accessed,
        "collectives": [
            {"kind": kind, "count": count,
             "bytes": sum(one.size for one in collectives if one.kind == kind),
             "moved": sum(one.moved for one in collectives if one.kind == kind)}
            for kind, count in Counter(one.kind for one in collectives).items()
        ],
        "seconds_at_least": bounds,
    }  # fmt: skip
    if evaluations is not None:
        figures["evaluations"] = evaluations
    if bounds:
        binding = max(bounds, key=bounds.get)
        rate = found.images / bounds[binding]
        figures |= {"binds": binding, "images_per_second_at_most": rate}
        if price is not None:
            hours = 1e6 / rate / 3600
            figures["cost_per_million_images_at_least"] = price * found.devices * hours
    return figures


def _table(found, chip, figures, topology):
    from rich.console import Console
    from rich.table import Table

    what = "one update of"
    if evaluations := figures.get("evaluations"):
        what = f"{evaluations} evaluations and the decoder, for"
    table = Table(title=f"{what} {found.images} images on {topology}, each device")
    table.add_column("")
    table.add_column("", justify="right")
    for name, size in figures["bytes"].items():
        shown = "not known without a compiler" if size is None else f"{size / 1e9:,.3f} GB"
        table.add_row("in all" if name == "memory" else name, shown)
    if chip:
        table.add_row("memory of the device", f"{chip.memory / 1e9:,.3f} GB")
    table.add_row("operations", f"{found.flops / 1e12:,.4f} TFLOP")
    if found.accessed is not None:
        table.add_row("bytes read and written", f"{found.accessed / 1e9:,.3f} GB")
    for one in figures["collectives"]:
        table.add_row(f"{one['count']} {one['kind']}", f"{one['bytes'] / 1e9:,.4f} GB")
    for name, seconds in found.bounds.items():
        binds = " (binds)" if name == figures["binds"] else ""
        table.add_row(f"time of {name}, at least{binds}", f"{1e3 * seconds:,.3f} ms")
    if found.bounds:
        table.add_row("images a second, at most", f"{figures['images_per_second_at_most']:,.1f}")
    if (cost := figures.get("cost_per_million_images_at_least")) is not None:
        table.add_row("cost of a million images, at least", f"{cost:,.2f}")
    console = Console()
    console.print(table)
    if chip and found.temporary is None:
        console.print("Nothing was compiled: activations are not counted, operations are those "
                      "of the program as it is written, and what devices tell each other is "
                      "what its mathematics asks for.")  # fmt: skip
    for line in figures.get("remedies", ()):
        console.print(f"to fit: {line}", highlight=False, soft_wrap=True)
