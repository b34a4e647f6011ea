"""What the sampling loop costs over the network it runs, and how often it compiles.

The network is a small DDPM U-Net (32 x 32, widths 64 and 128). Its own time is that of the same number
of evaluations, one jitted call after another; the loop's is that of `sample` with the samplers in
turn, noise and padding rows included. Runs are turn about. Both the wall clock and the processor
time of the process are compared, the second because other programs do not change it much. Writes
results/sampling_loop.json.

    python -m benchmarks.sampling_loop
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import rich
import tyro
from rich.table import Table

from benchmarks.common import RESULTS, machine
from sdjax import diffusion
from sdjax.models import UNet, UNetConfig

WANTED = 0.02
SAMPLERS = ("ddim", "ddpm", "dpmpp_2m", "unipc", "euler_a", "dpmpp_2m_sde")


def build(batch):
    """(evaluate once, sample with a table): both jitted, functions of parameters first."""
    config = UNetConfig(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        cross_attention_dim=None,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        attention_head_dim=None,
        layers_per_block=1,
    )
    unet = UNet(config)
    x = jnp.zeros((batch, 32, 32, 3))
    params = jax.jit(unet.init)(jax.random.key(0), x, jnp.zeros(()), None)["params"]

    def evaluate(params, x, t):
        return unet.apply({"params": params}, x, t, None)

    def sample(params, table, x, key):
        return diffusion.sample(lambda x, t: evaluate(params, x, t), table, x, key)

    return params, jax.jit(evaluate), jax.jit(sample)


def seconds(function):
    """(wall, processor) seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - processor


def main(batch: int = 8, steps: int = 20, rounds: int = 9, save: bool = True):
    """Measures, prints and writes."""
    params, evaluate, sample = build(batch)
    schedule, key = diffusion.linear_schedule(), jax.random.key(1)
    x = jax.random.normal(key, (batch, 32, 32, 3))
    tables = {name: diffusion.sampler(name, schedule, steps) for name in SAMPLERS}

    def network():
        y = x
        for t in tables["ddim"].timesteps:
            y = evaluate(params, y, t)
        return y

    tasks = {"network": network} | {
        name: (lambda table=table: sample(params, table, x, key)) for name, table in tables.items()
    }
    for task in tasks.values():
        seconds(task)
    compiled = sample._cache_size()
    times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(seconds(task))
    for count in (7, 30, 60):  # other steps, sampler, seed and clipping: the same program
        table = diffusion.sampler("dpmpp_2s", schedule, count, clip=1.0)
        seconds(lambda table=table: sample(params, table, 0.5 * x, jax.random.key(2)))
    recompiled = sample._cache_size() - compiled

    shown = Table(title=f"{steps} steps, batch {batch}: the loop over {steps} evaluations")
    for column in ("", "wall, median", "least", "over", "processor, median", "over"):
        shown.add_column(column, justify="right")
    results = {}
    for name, taken in times.items():
        wall, processor = zip(*taken, strict=True)
        result = {
            "wall_s": statistics.median(wall),
            "least_wall_s": min(wall),
            "processor_s": statistics.median(processor),
        }
        alone = results.get("network", result)
        for kind in ("least_wall_s", "processor_s"):
            result[f"{kind}_overhead"] = result[kind] / alone[kind] - 1
        results[name] = result
        shown.add_row(
            name,
            f"{1e3 * result['wall_s']:.0f} ms",
            f"{1e3 * result['least_wall_s']:.0f} ms",
            f"{100 * result['least_wall_s_overhead']:+.1f} %",
            f"{1e3 * result['processor_s']:.0f} ms",
            f"{100 * result['processor_s_overhead']:+.1f} %",
        )
    rich.print(shown)
    rich.print(f"programs compiled: {compiled}; by other tables after that: {recompiled}")
    if save:
        RESULTS.mkdir(exist_ok=True)
        written = {
            "benchmark": "sampling_loop",
            "machine": machine(),
            "settings": {"batch": batch, "steps": steps, "rounds": rounds},
            "results": results,
            "compiled": compiled,
            "recompiled": recompiled,
            "wanted_overhead": WANTED,
        }
        (RESULTS / "sampling_loop.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
