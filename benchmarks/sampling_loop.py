"""What the sampling loop costs over the network it runs, and how often it compiles.

The network is a small DDPM U-Net (32 x 32, widths 64 and 128). Its own time is measured in two
ways: as many jitted calls one after another, and one program that does nothing but apply it as
often. The loop is `sample` with the samplers in turn, with all it does: noise, history, the table's
padding rows. All are run turn about, and each time is divided by the network's of the same round;
the medians of these ratios are told. Beside the wall clock stands the processor time of the
process, which other programs change less. What is wanted is that the loop costs 2 % at most, over
the rounds of all samplers: they run one program and differ by chance. Writes
results/sampling_loop.json.

    python -m benchmarks.sampling_loop
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, machine
from sdjax import diffusion
from sdjax.models import UNet, UNetConfig

WANTED = 0.02
# Deterministic and stochastic ones, of one evaluation a step.
SAMPLERS = ("ddim", "dpmpp_2m", "unipc", "euler_a", "dpmpp_2m_sde")
CALLS, BARE = "network, calls", "network, one program"
# They run one program and differ by chance; their rounds together say what it costs.
ALL = "all samplers"


def build(batch):
    """(parameters, evaluate, sample): the functions are jitted and take the parameters first."""
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


def build_tasks(params, evaluate, sample, x, steps):
    """{name: function of nothing}: the network's own time in both ways, then every sampler."""
    schedule, key = diffusion.linear_schedule(), jax.random.key(1)
    tables = {name: diffusion.sampler(name, schedule, steps) for name in SAMPLERS}
    times = jnp.asarray(tables["ddim"].timesteps)

    def calls():
        y = x
        for t in list(times):
            y = evaluate(params, y, t)
        return y

    @jax.jit
    def bare(params, x, times):
        return jax.lax.scan(lambda y, t: (evaluate(params, y, t), None), x, times)[0]

    return {CALLS: calls, BARE: lambda: bare(params, x, times)} | {
        name: (lambda table=table: sample(params, table, x, key)) for name, table in tables.items()
    }


def seconds(function):
    """(wall, processor) seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - processor


def overheads(taken, alone):
    """Medians of the rounds' wall and processor seconds over those of the network alone, less 1."""
    ratios = [[ours / own for ours, own in zip(*pair, strict=True)]
              for pair in zip(taken, alone, strict=True)]  # fmt: skip
    return tuple(statistics.median(kind) - 1 for kind in zip(*ratios, strict=True))


def programs_of_requests(params, evaluate, x):
    """How many programs requests of other samplers, steps, prompts, guidance and seeds compile."""

    @jax.jit
    def answer(params, table, x, key, prompt, scale):
        def predict(x, t, condition):
            return evaluate(params, x, t) + condition

        denoise = diffusion.guided(predict, prompt, 0 * prompt, scale)
        return diffusion.sample(denoise, table, x, key)

    requests = (("ddim", 3, 7.5), ("dpmpp_2m_sde", 2, 1.0), ("heun", 2, 3.0), ("plms", 3, 1.5))
    for seed, (name, steps, scale) in enumerate(requests):
        table = diffusion.sampler(name, diffusion.linear_schedule(), steps)
        key = jax.random.key(seed)
        prompt = 0.1 * jax.random.normal(key, x.shape)
        jax.block_until_ready(answer(params, table, x, key, prompt, jnp.float32(scale)))
    return answer._cache_size()


def main(batch: int = 8, steps: int = 20, rounds: int = 13, save: bool = True):
    """Measures, prints and writes."""
    params, evaluate, sample = build(batch)
    x = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    tasks = build_tasks(params, evaluate, sample, x, steps)
    for task in tasks.values():
        seconds(task)
    compiled = sample._cache_size()
    names = list(tasks)
    times = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(tasks[name]))
    # Other steps, sampler, seed and clipping: the same program.
    for name, count in (("dpmpp_2s", 3), ("heun", 2), ("ddpm", 7)):
        table = diffusion.sampler(name, diffusion.linear_schedule(), count, clip=1.0)
        seconds(lambda table=table: sample(params, table, 0.5 * x, jax.random.key(count)))
    recompiled = sample._cache_size() - compiled
    requested = programs_of_requests(params, evaluate, x[:1])

    shown = Table(title=f"{steps} steps, batch {batch}: overhead over {steps} evaluations")
    for column in ("", "wall", "over calls", "over one program", "processor", "over calls",
                   "over one program"):  # fmt: skip
        shown.add_column(column, justify="right")
    results, times[ALL] = {}, [taken for name in SAMPLERS for taken in times[name]]
    for name, taken in times.items():
        medians = [statistics.median(kind) for kind in zip(*taken, strict=True)]
        again = len(taken) // rounds
        over = {alone: overheads(taken, times[alone] * again) for alone in (CALLS, BARE)}
        results[name] = {
            "wall_s": medians[0],
            "processor_s": medians[1],
            "wall_overhead": {alone: pair[0] for alone, pair in over.items()},
            "processor_overhead": {alone: pair[1] for alone, pair in over.items()},
        }
        cells = []
        for kind in (0, 1):
            cells.append(f"{1e3 * medians[kind]:.0f} ms")
            cells += [f"{100 * over[alone][kind]:+.1f} %" for alone in (CALLS, BARE)]
        shown.add_row(name, *cells)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(shown)
    within = max(results[ALL]["wall_overhead"].values()) <= WANTED
    console.print(
        f"programs compiled: {compiled}; by other tables after that: {recompiled}; by requests of "
        f"other samplers, steps, prompts, guidance and seeds: {requested}"
    )
    console.print(f"{ALL}: {WANTED:.0%} or less over both: {'yes' if within else 'no'}")
    if save:
        RESULTS.mkdir(exist_ok=True)
        written = {
            "benchmark": "sampling_loop",
            "machine": machine(),
            "settings": {"batch": batch, "steps": steps, "rounds": rounds},
            "results": results,
            "compiled": compiled,
            "recompiled": recompiled,
            "programs_of_requests": requested,
            "wanted_overhead": WANTED,
            "within_wanted": within,
        }
        (RESULTS / "sampling_loop.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
