"""What full training and LoRA take of TPU slices, and how far the links between chips carry it.

By `sdjax plan` without compiling: parameters, optimizer and averages as the rules cut them,
operations of the step as it is written, and what its mathematics makes the chips tell each other.
Activations come on top, and only a compiler knows them. Then the same step on 8, 64 and 256 chips,
each with as many pictures: the efficiency is bounded by compute over the slower of compute and
links, where they overlap wholly. And what it takes to make pictures on one chip, without compiling
either. Writes results/pods.json.

    python -m benchmarks.pods [--cases "sd15 full, v5e:2x4" …]
"""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, machine
from sdjax.chips import CHIPS
from sdjax.parallel import Placement
from sdjax.pipeline import planning
from sdjax.training.recipes.plan import estimate, expected, problem_of
from sdjax.training.recipes.recipe import load_config

EACH = 8  # pictures of a chip in an update
CASES = {
    "sd15 full, v5e:2x4": ("finetune", "sd15", "v5e:2x4", 8),
    "sd15 full, v5e:16x16": ("finetune", "sd15", "v5e:16x16", 8),
    "sdxl full, v5e:16x16": ("finetune", "sdxl", "v5e:16x16", 16),
    "sdxl full, v6e:8x8": ("finetune", "sdxl", "v6e:8x8", 8),
    "sd15 lora, v5e:1x1": ("lora", "sd15", "v5e:1x1", 1),
    "sdxl lora, v5e:1x1": ("lora", "sdxl", "v5e:1x1", 1),
}
"""Name -> recipe, model, slice, chips that share the parameters."""
PICTURES = {"sd15": 8, "sdxl": 4}
"""Model -> guided pictures at once, at its own size, on one v5e."""
STEPS = 30
SCALED = ("sd15 full, v5e:16x16", "sdxl full, v5e:16x16")
CHIPS_OF_A_POD = (8, 64, 256)


def recipe_of(name):
    """The recipe of a case, with its share of pictures and its placement."""
    config, model, topology, fsdp = CASES[name]
    sides = topology.partition(":")[2].split("x")
    chips = int(sides[0]) * int(sides[1])
    recipe = load_config(config)
    run = replace(recipe.diffusion, batch_size=EACH * chips, accumulation=1, precision="bfloat16",
                  base_dtype="bfloat16")  # fmt: skip
    placement = Placement(fsdp=fsdp)
    return replace(recipe, model=model, diffusion=run, placement=placement), topology


def planned(name) -> dict:
    """The figures of a case."""
    recipe, topology = recipe_of(name)
    found = estimate(recipe, topology, compiled=False)
    chip, bounds = CHIPS[found.chip], found.bounds
    return {
        "case": name, "chips": found.devices, "fsdp": recipe.placement.fsdp,
        "pictures_a_chip": EACH, "parameters": found.parameters, "optimizer": found.optimizer,
        "ema": found.ema, "frozen": found.frozen, "data": found.data, "held": found.held,
        "left_of_the_chip": chip.memory - found.held, "flops": found.flops,
        "links_bytes": sum(one.moved for one in found.collectives),
        "seconds_at_least": bounds, "images_per_second_a_chip": EACH / max(bounds.values()),
    }  # fmt: skip


def pictures(model) -> dict:
    """The figures of making pictures with a model."""
    count = PICTURES[model]
    found = planning.estimate(model, "v5e:1x1", count, jnp.bfloat16, compiled=False, steps=STEPS)
    chip = CHIPS[found.chip]
    return {
        "model": model, "pictures": count, "steps": STEPS, "parameters": found.parameters,
        "data": found.data, "left_of_the_chip": chip.memory - found.memory, "flops": found.flops,
        "seconds_at_least": found.bounds["compute"],
    }  # fmt: skip


def scaled(row) -> list[dict]:
    """A case on pods of other sizes, each chip with the same work."""
    recipe, _ = recipe_of(row["case"])
    problem = problem_of(recipe)
    params = jax.eval_shape(problem.objective.init, jax.random.key(0), problem.frozen)
    frozen = jax.eval_shape(problem.objective.kept, problem.frozen)
    chip = CHIPS[row["case"].rpartition(", ")[2].partition(":")[0]]
    rows = []
    for chips in CHIPS_OF_A_POD:
        fsdp = min(row["fsdp"], chips)
        told = expected(params, frozen, fsdp, 1, chips)
        links, compute = sum(one.moved for one in told) / chip.links, row["flops"] / chip.flops
        rows.append({
            "case": row["case"].partition(",")[0], "chips": chips, "fsdp": fsdp,
            "links_bytes": sum(one.moved for one in told), "links_seconds": links,
            "compute_seconds": compute, "efficiency_at_most": compute / max(compute, links),
        })  # fmt: skip
    return rows


def main(cases: tuple[str, ...] = tuple(CASES)) -> None:
    """Plan each case, and print the tables."""
    rows = [planned(name) for name in cases]
    scaling = [line for row in rows if row["case"] in SCALED for line in scaled(row)]
    made = [pictures(model) for model in PICTURES]
    told = {"machine": machine(), "rows": rows, "scaling": scaling, "making": made}
    (RESULTS / "pods.json").write_text(json.dumps(told, indent=2) + "\n")
    table = Table(title=f"GB of each chip, {EACH} pictures, nothing compiled")
    for column in ("", "parameters", "optimizer", "ema", "frozen", "left", "TFLOP", "GB over links",
                   "compute ms", "links ms"):  # fmt: skip
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        sizes = [row[name] for name in ("parameters", "optimizer", "ema", "frozen")]
        times = [f"{1e3 * row['seconds_at_least'][name]:.0f}" for name in ("compute", "links")]
        table.add_row(
            row["case"], *(f"{size / 1e9:.2f}" for size in (*sizes, row["left_of_the_chip"])),
            f"{row['flops'] / 1e12:.1f}", f"{row['links_bytes'] / 1e9:.2f}", *times,
        )  # fmt: skip
    Console(width=120).print(table)
    table = Table(title="the same work of each chip on more of them")
    for column in ("", "chips", "fsdp", "GB over links", "links ms", "compute ms", "efficiency"):
        table.add_column(column, justify="right" if column else "left")
    for row in scaling:
        table.add_row(
            row["case"], str(row["chips"]), str(row["fsdp"]), f"{row['links_bytes'] / 1e9:.2f}",
            f"{1e3 * row['links_seconds']:.0f}", f"{1e3 * row['compute_seconds']:.0f}",
            f"{row['efficiency_at_most']:.0%}",
        )  # fmt: skip
    Console(width=120).print(table)
    table = Table(title=f"guided pictures of {STEPS} steps on one v5e")
    for column in ("", "pictures", "parameters GB", "left GB", "TFLOP", "seconds, at least"):
        table.add_column(column, justify="right" if column else "left")
    for row in made:
        table.add_row(
            row["model"], str(row["pictures"]), f"{row['parameters'] / 1e9:.2f}",
            f"{row['left_of_the_chip'] / 1e9:.2f}", f"{row['flops'] / 1e12:.0f}",
            f"{row['seconds_at_least']:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
