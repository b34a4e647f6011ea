"""Deep features of the U-Net shared by evaluations (`reuse_every`): speed and what it costs.

Of the shipped model: seconds of a guided batch over those of whole evaluations, in turns, and the
share of captions whose picture is nearest to the right emoji. Of the published U-Nets: operations
of an evaluation of the finest level alone over those of a whole one, counted in the programs as
they are written. Writes results/reuse.json.

    python -m benchmarks.reuse [--every 2 3 5] [--captions 40]
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, machine

STEPS, BATCH, ROUNDS = 20, 8, 3


def of_emoji(every: tuple[int, ...], count: int) -> list[dict]:
    """A row for whole evaluations, and one for each way to share."""
    import sdjax
    from sdjax.data import DataConfig
    from sdjax.evaluation.known import known_pictures
    from sdjax.evaluation.nearest import nearest_rate
    from sdjax.evaluation.sheets import to_uint8

    known, names = known_pictures(DataConfig(source="emoji", subset="core"))
    different = list(dict.fromkeys(names))
    asked = [different[i] for i in np.random.default_rng(0).permutation(len(different))[:count]]
    model = sdjax.StableDiffusion.from_pretrained(sdjax.EMOJI)

    def made(prompts, reuse):
        return model.generate(
            prompts, steps=STEPS, seed=list(range(len(prompts))), batch_size=BATCH,
            reuse_every=reuse, output="numpy", progress=False,
        )  # fmt: skip

    kinds, seconds, rows = (None, *every), {}, []
    pictures = {kind: made(asked, kind) for kind in kinds}
    for _ in range(ROUNDS):  # in turns, so that all see the same machine
        for kind in kinds:
            start = time.perf_counter()
            made(asked[:BATCH], kind)
            seconds.setdefault(kind, []).append(time.perf_counter() - start)
    for kind in kinds:
        rate = nearest_rate(to_uint8(pictures[kind]), asked, known, names)
        error = np.mean((pictures[kind] - pictures[None]) ** 2) / 4
        ratios = np.divide(seconds[kind], seconds[None])
        rows.append({
            "reuse_every": kind, "captions": len(asked), "right": int(rate.right.sum()),
            "time_ratio": float(np.median(ratios)), "seconds": float(np.median(seconds[kind])),
            "psnr_db": None if kind is None else float(-10 * np.log10(error)),
        })  # fmt: skip
    return rows


def of_published(name: str) -> dict:
    """Operations of the finest level over those of a whole evaluation, of a guided picture."""
    from sdjax import absent
    from sdjax.models import UNetConfig
    from sdjax.weights import UNet
    from sdjax.weights.parts import unet_inputs, unet_shapes
    from sdjax.weights.published import published

    config = UNetConfig.from_dict(published(name)["unet"])
    network, side = UNet(config), config.sample_size
    _, t, context, added, *_ = unet_inputs(config)
    x = jnp.zeros((1, side, side, config.in_channels))
    context = jnp.zeros((1, 77, context.shape[-1]))
    deep = jnp.zeros((1, side, side, config.block_out_channels[0]))
    given = {"params": unet_shapes(config)}, x, t, context
    options = {"device": jax.devices()[0], "platform": "gpu", "compiled": False}
    whole = absent.cost(lambda *a: network.apply(*a, added), *given, **options)
    finest = absent.cost(
        lambda *a: network.apply(*a[:4], added, deep=a[4]), *given, deep, **options
    )
    return {"model": name, "operations_of_the_finest_level": finest.flops / whole.flops}


def main(
    every: tuple[int, ...] = (2, 3, 5), captions: int = 40,
    models: tuple[str, ...] = ("sd15", "sdxl"),
) -> None:
    """Measures, prints and writes."""
    from sdjax import parallel

    parallel.use_cpu_devices()
    parallel.use_compile_cache()
    rows, shares = of_emoji(every, captions), [of_published(name) for name in models]
    told = {"machine": machine(), "steps": STEPS, "batch": BATCH, "emoji": rows,
            "published": shares}  # fmt: skip
    (RESULTS / "reuse.json").write_text(json.dumps(told, indent=2) + "\n")
    table = Table(title=f"the shipped model, {STEPS} steps, batches of {BATCH}")
    for column in ("reuse_every", "right", "time", "PSNR to whole, dB"):
        table.add_column(column, justify="right")
    for row in rows:
        psnr = "" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        table.add_row(str(row["reuse_every"] or "whole"), f"{row['right']} of {row['captions']}",
                      f"{row['time_ratio']:.2f}", psnr)  # fmt: skip
    Console().print(table)
    for share in shares:
        print(f"{share['model']}: {share['operations_of_the_finest_level']:.1%} of the operations")


if __name__ == "__main__":
    tyro.cli(main)
