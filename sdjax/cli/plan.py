"""`sdjax plan`: what a training takes of hardware that need not be there."""

import json as js
from collections import Counter
from pathlib import Path

from .common import parsed, prepare_devices
from .train import WORDS


def plan(
    config: Path, topology: str, price: float | None = None, compile: bool = True, json: bool = False
) -> tuple[Path, str, float | None, bool, bool]:
    """Compile a training step for devices that need not be there, and tell what it takes of them.

    sdjax plan --config lora --model sd15 --topology v5e:2x4

    Every value of the recipe is an option, as of `train`; no data and no weights are read. What is
    told are bounds: no program is faster than they say.

    Args:
        config: A recipe, as `train` takes it.
        topology: The devices: v5e:2x4, v5p:…, v6e:16x16, for which the package libtpu compiles;
            h100:8 or a100:8, for which only sizes and operations are counted; or cpu, this machine.
        price: Of one device for an hour, for the cost of a million images.
        compile: Whether the program is compiled for TPUs, which takes minutes to an hour for large
            models; without, sizes and operations are counted, as for GPUs.
        json: Print the figures as JSON.
    """
    return config, topology, price, compile, json


def run(arguments: list[str], program: str) -> int:
    """Reads the recipe's own options, compiles, and prints a table."""
    own = {"config", "topology", "price", "compile", "json"}
    (config, topology, price, compiled, as_json), rest = parsed(
        plan, arguments, program, words=WORDS, ours={*own, *(n.split()[0] for n in WORDS.values())},
        required=["--config", "--topology"], return_unknown_args=True,
    )  # fmt: skip
    from sdjax.chips import CHIPS
    from sdjax.pipeline.given.arguments import number
    from sdjax.training.recipes import plan as planning
    from sdjax.training.recipes.recipe import load_config, with_overrides

    if price is not None:
        number(0)("price", price)
    recipe = with_overrides(load_config(config), rest, f"{program} plan --config {config}")
    prepare_devices([recipe.diffusion.batch_size] if recipe.diffusion else [])
    found = planning.estimate(recipe, topology, compiled)
    chip = CHIPS.get(found.chip)
    figures = _figures(found, chip, price)
    if chip is not None and found.memory > 0.95 * chip.memory:
        figures["remedies"] = planning.remedies(recipe, found)
    if as_json:
        print(js.dumps(figures, indent=2))
    else:
        _table(found, chip, figures, topology)
    return 0


def _figures(found, chip, price):
    bounds = found.bounds
    figures = {
        "chip": found.chip, "devices": found.devices, "images_per_step": found.images,
        "bytes": {
            name: getattr(found, name)
            for name in ("parameters", "optimizer", "ema", "frozen", "data", "temporary", "memory")
        },
        "memory_of_chip": chip.memory if chip else None,
        "fits": found.memory <= chip.memory if chip and found.temporary is not None else None,
        "flops": found.flops, "bytes_accessed": found.accessed,
        "collectives": [
            {"kind": kind, "count": count,
             "bytes": sum(one.size for one in found.collectives if one.kind == kind),
             "moved": sum(one.moved for one in found.collectives if one.kind == kind)}
            for kind, count in Counter(one.kind for one in found.collectives).items()
        ],
        "seconds_at_least": bounds,
    }  # fmt: skip
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

    table = Table(title=f"one update of {found.images} images on {topology}, each device")
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
