"""What the memory of one TPU chip must hold to make a picture: compiled for it, without one.

Text to image and inpainting (the model's 9 channels) with SD1.5 at 512 pixels and SDXL at 1024, one
picture with guidance in bfloat16. The sampling program and the decoder are those that `generate`
runs; XLA's compiler for the chip says what each takes. All of the model's parameters stay on the
chip meanwhile, and count. The FLOPs are those of one evaluation: the compiler counts a loop's body
once. Writes results/tpu_memory.json; cases that are not named keep what it says of them.

    python -m benchmarks.tpu_memory [--cases sd15 sd15_inpaint sdxl sdxl_inpaint] [--topology v5e:2x2]
"""

import dataclasses
import json
import time

import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, machine
from sdjax import absent
from sdjax.pipeline import planning
from sdjax.pipeline.model.configurations import configurations
from sdjax.pipeline.planning import size

CASES = ("sd15", "sd15_inpaint", "sdxl", "sdxl_inpaint")
LIMIT = 16 * 1024**3  # bytes of a v5e's memory
DTYPE = jnp.bfloat16


def case(name: str) -> planning.Making:
    """The generation of a case, its parameters as shapes."""
    model, _, inpaint = name.partition("_")
    known = configurations(model)
    known.parts["unet"] = dataclasses.replace(
        known.parts["unet"], in_channels=9 if inpaint else 4)
    asked = planning.request(known, 1, bool(inpaint), steps=30, guidance_scale=5.0)
    return planning.making(known, asked, DTYPE)


def main(cases: tuple[str, ...] = CASES, topology: str = "v5e:2x2") -> None:
    """Compile each case for one chip of the topology, and print what it takes."""
    device = absent.devices(topology)[0]
    chip, written = topology.split(":")[0], RESULTS / "tpu_memory.json"
    before = json.loads(written.read_text()) if written.exists() else {}
    known = {row["case"]: row for row in before.get("rows", ()) if before["chip"] == chip}
    for name in cases:
        made = case(name)
        program, params = made.program, made.params
        started = time.perf_counter()
        found = absent.cost(program, params, program.inputs, device=device)
        # The compiler leaves out parameters that no picture of this kind needs; they are there too.
        row = {
            "parameters": size(params) + made.idle, "inputs": size(program.inputs),
            "outputs": found.outputs, "temporary": found.temporary,
        }  # fmt: skip
        total = sum(row.values())
        known[name] = {
            "case": name, **row, "total": total, "fits": total <= LIMIT, "flops": found.flops,
            "compile_seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip
        rows = [known[case] for case in CASES if case in known]
        told = {"machine": machine(), "chip": chip, "limit": LIMIT, "dtype": "bfloat16", "rows": rows}
        written.write_text(json.dumps(told, indent=2) + "\n")
    table = Table(title=f"GB of one chip of {topology}, bfloat16, a guided picture")
    for column in ("case", "parameters", "inputs", "outputs", "temporary", "total", "fits"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        sizes = [f"{row[key] / 1e9:.2f}" for key in list(row)[1:6]]
        table.add_row(row["case"], *sizes, "yes" if row["fits"] else "no")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
