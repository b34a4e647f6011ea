"""Order of convergence of every deterministic solver, on a problem with a known solution.

A perfect network for a mixture of Gaussians; the error is that of the probability-flow ODE from
σ = 150 to 0.05, over the quantiles of the mixture, in float64. Steps are even in log σ. Writes
results/solver_order.json and docs/solver_order.png.

    python -m benchmarks.solver_order
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from rich.table import Table

from benchmarks import mixture
from benchmarks.common import RESULTS, machine
from sdjax import diffusion
from sdjax.diffusion.grids import sigma_table
from sdjax.diffusion.samplers import training_signal

HIGH, LOW = 150.0, 0.05
FULL = {"lower_order_final": False}
# Name in the plot: sampler, options, and the order that theory gives with a start of order one.
SOLVERS = {
    "Euler, DDIM": ("euler", {}, 1),
    "Heun": ("heun", {}, 2),
    "DPM2": ("dpm2", {}, 2),
    "iPNDM": ("ipndm", {}, 2),
    "DPM++ 2M": ("dpmpp_2m", FULL, 2),
    "DPM++ 2S": ("dpmpp_2s", {}, 2),
    "DPM++ 2S, order 3": ("dpmpp_2s", {"order": 3}, 3),
    "DEIS 2": ("deis", FULL, 2),
    "DEIS 3": ("deis", {"order": 3, **FULL}, 3),
    "LMS": ("lms", {}, 4),
    "UniPC 2": ("unipc", FULL, 3),
    "UniPC 3": ("unipc", {"order": 3, **FULL}, 3),
}


@functools.cache
def problem():
    """(schedule, level of a timestep, x at HIGH, exact x at LOW), both of unit variance."""
    schedule = diffusion.linear_schedule()
    level = mixture.level_of(sigma_table(training_signal(schedule)))
    p = jnp.linspace(0.02, 0.98, 41)
    start, end = (
        mixture.quantile(p, 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio))
        for ratio in (HIGH, LOW)
    )
    return schedule, level, start, end


@jax.jit
def _run(table, x):
    network = mixture.network(problem()[1])
    return diffusion.sample(network, table, x, jax.random.key(0))


def error(name, options, steps):
    """(root mean square error, evaluations) of a sampler; wants float64 enabled."""
    schedule, _, start, exact = problem()
    levels = np.exp(np.linspace(np.log(HIGH), np.log(LOW), steps + 1))
    table = diffusion.sampler(
        name, schedule, None, sigmas=levels[:-1], final=levels[-1], start=0, pad_to=1024,
        dtype=np.float64, **options,
    )  # fmt: skip
    x = _run(table, start)
    if table.initial_scale > 1:  # x_0 + σ·ε, to unit variance
        x = x / np.hypot(1, LOW)
    return float(jnp.sqrt(((x - exact) ** 2).mean())), table.evaluations


def measured_order(errors):
    """Slope of log error over log evaluations, from the two finest runs."""
    (coarse, n), (fine, m) = errors[-2:]
    return float(np.log(coarse / fine) / np.log(m / n))


def plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5))
    for (name, result), marker in zip(results.items(), "osD^v<>pPX*h", strict=False):
        errors, evaluations = zip(*result["errors"], strict=True)
        label = f"{name} ({result['order']:.1f})"
        axes.loglog(evaluations, errors, marker=marker, markersize=4, label=label)
    axes.set_xlabel("evaluations of the network")
    axes.set_ylabel("root mean square error")
    axes.legend(title="measured order", fontsize=8, ncols=2)
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(steps: tuple[int, ...] = (24, 48, 96, 192, 384), save: bool = True):
    """Measures, prints and writes."""
    results, table = {}, Table(title="Order of convergence")
    for column in ("solver", *map(str, steps), "order", "theory"):
        table.add_column(column)
    for label, (name, options, theory) in SOLVERS.items():
        with jax.enable_x64(True):
            errors = [error(name, options, count) for count in steps]
        order = measured_order(errors)
        results[label] = {"errors": errors, "order": order, "theory": theory}
        table.add_row(label, *(f"{e:.1e}" for e, _ in errors), f"{order:.2f}", str(theory))
    rich.print(table)
    if save:
        RESULTS.mkdir(exist_ok=True)
        written = {"benchmark": "solver_order", "machine": machine(), "results": results}
        (RESULTS / "solver_order.json").write_text(json.dumps(written, indent=1) + "\n")
        plot(results, Path(__file__).parent.parent / "docs" / "solver_order.png")


if __name__ == "__main__":
    tyro.cli(main)
