"""What the memory of one TPU chip must hold to make a picture: compiled for it, without one.

Text to image and inpainting (the model's 9 channels) with SD1.5 at 512 pixels and SDXL at 1024, one
picture with guidance in bfloat16. The sampling program and the decoder are those that `generate`
runs; XLA's compiler for the chip says what each takes. All of the model's parameters stay on the
chip meanwhile, and count. The FLOPs are those of one evaluation: the compiler counts a loop's body
once. Writes results/tpu_memory.json; cases that are not named keep what it says of them.

    python -m benchmarks.tpu_memory [--cases sd15 sd15_inpaint sdxl sdxl_inpaint] [--topology v5e:2x2]
"""

import json
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, machine
from sdjax import VAE, UNet, absent
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.pipeline import run
from sdjax.pipeline.compiled import arrays
from sdjax.pipeline.compiled.program import Program
from sdjax.pipeline.plans.plan import plan
from sdjax.pipeline.plans.request import Request
from sdjax.text.encode import Embedded
from sdjax.weights.parts import text_shapes, unet_shapes, vae_shapes
from sdjax.weights.published import published

CASES = ("sd15", "sd15_inpaint", "sdxl", "sdxl_inpaint")
LIMIT = 16 * 1024**3  # bytes of a v5e's memory
DTYPE = jnp.bfloat16


def case(name: str) -> tuple[Program, dict, int]:
    """(the generation, its parameters' shapes, bytes of the parameters that lie idle)."""
    model, _, inpaint = name.partition("_")
    configs = published(model)
    config = {**configs["unet"], "in_channels": 9 if inpaint else 4}
    unet = UNet(UNetConfig.from_dict(config), DTYPE)
    vae = VAE(VAEConfig.from_dict(configs["vae"]), DTYPE)
    texts = [TextEncoderConfig.from_dict(configs[part]) for part in configs if "text" in part]
    pictures = {}
    if inpaint:
        side = configs["vae"]["sample_size"]
        pictures = {"image": np.zeros((side, side, 3), np.uint8),
                    "mask": np.full((side, side), 255, np.uint8)}  # fmt: skip
    asked = Request("a prompt", steps=30, guidance_scale=5.0, output="numpy", **pictures)
    planned = plan(
        asked, configs["scheduler"], unet.config, vae.config, texts, 7.5, unet.dtype
    )
    width = unet.config.cross_attention_dim
    pooled = np.zeros((1, 2, 1, texts[-1].projection_dim), DTYPE) if model == "sdxl" else None
    latents = run.Latents(*np.zeros((2, 1, *planned.shape), np.float32), np.zeros(1, int))
    encoded = run.Encoded(
        Embedded(np.zeros((1, 2, 1, 77, width), DTYPE), pooled), latents, latents, controls=[]
    )
    stub = types.SimpleNamespace(unet=unet, vae=vae)
    inputs = run.inputs_of(stub, asked, planned, encoded, np.arange(1))
    params = {
        "unet": halved(unet_shapes(unet.config)), "vae": halved(vae_shapes(vae.config)),
        "controls": (),
    }  # fmt: skip
    networks = arrays.Networks(unet)
    idle = sum(size(halved(text_shapes(text))) for text in texts)
    return Program(networks, arrays.Coder(vae), False, inputs), params, idle


def halved(shapes):
    """The shapes in DTYPE."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, DTYPE), shapes)


def size(shapes) -> int:
    """Bytes of a tree of shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def main(cases: tuple[str, ...] = CASES, topology: str = "v5e:2x2") -> None:
    """Compile each case for one chip of the topology, and print what it takes."""
    device = absent.devices(topology)[0]
    chip, written = topology.split(":")[0], RESULTS / "tpu_memory.json"
    before = json.loads(written.read_text()) if written.exists() else {}
    known = {row["case"]: row for row in before.get("rows", ()) if before["chip"] == chip}
    for name in cases:
        program, params, idle = case(name)
        started = time.perf_counter()
        found = absent.cost(program, params, program.inputs, device=device)
        # The compiler leaves out parameters that no picture of this kind needs; they are there too.
        row = {
            "parameters": size(params) + idle, "inputs": size(program.inputs),
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
