"""Order of convergence of every deterministic solver, on a problem with a known solution.

A perfect network for a mixture of Gaussians; the error is that of the probability-flow ODE from
σ = 150 to 0.05, over the quantiles of the mixture, in float64. Steps are even in log σ, for DDIM
and PLMS on a schedule whose timesteps are. Writes results/solver_order.json and
docs/solver_order.png.

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
DPM, NOISE = {"algorithm": "dpm"}, {"predict_x_0": False}
TRAINING = ("ddim", "plms")  # step through timesteps of the training schedule
TIMESTEPS = 1536  # of theirs; a multiple of every number of steps
# Name in the plot: sampler, options, and the order of theory.
SOLVERS = {
    "DDIM": ("ddim", {}, 1),
    "PLMS": ("plms", {}, 2),
    "iPNDM": ("ipndm", {}, 2),
    "Euler": ("euler", {}, 1),
    "Heun": ("heun", {}, 2),
    "DPM2": ("dpm2", {}, 2),
    "LMS": ("lms", {}, 4),
    "DPM++ 2M, order 1": ("dpmpp_2m", {"order": 1, **FULL}, 1),
    "DPM++ 2M": ("dpmpp_2m", FULL, 2),
    "DPM++ 2M, Heun": ("dpmpp_2m", {"solver": "heun", **FULL}, 2),
    "DPM++ 2M, order 3": ("dpmpp_2m", {"order": 3, **FULL}, 2),
    "DPM 2M": ("dpmpp_2m", {**DPM, **FULL}, 2),
    "DPM++ 2S, order 1": ("dpmpp_2s", {"order": 1}, 1),
    "DPM++ 2S": ("dpmpp_2s", {}, 2),
    "DPM++ 2S, order 3": ("dpmpp_2s", {"order": 3}, 3),
    "DPM 2S": ("dpmpp_2s", DPM, 2),
    "DEIS 1": ("deis", {"order": 1, **FULL}, 1),
    "DEIS 2": ("deis", FULL, 2),
    "DEIS 3": ("deis", {"order": 3, **FULL}, 3),
    "UniPC 1": ("unipc", {"order": 1, **FULL}, 2),
    "UniPC 2": ("unipc", FULL, 3),
    "UniPC 2, bh1": ("unipc", {"variant": "bh1", **FULL}, 3),
    "UniPC 2, ε": ("unipc", {**NOISE, **FULL}, 3),
    "UniPC 3": ("unipc", {"order": 3, **FULL}, 4),
    "EDM Euler": ("edm_euler", {}, 1),
    "EDM Heun": ("edm_heun", {}, 2),
    "EDM DPM++ 2M": ("edm_dpmpp_2m", FULL, 2),
}


@functools.cache
def problem(name):
    """(schedule, network, x at HIGH, exact x at LOW), both of unit variance, for a sampler."""
    if name in TRAINING:
        ratio = np.exp(np.linspace(np.log(LOW), np.log(HIGH), TIMESTEPS + 1))[1:]
        signal = 1 / (1 + ratio**2)
        schedule = diffusion.schedule_from_betas(1 - signal / np.append(1.0, signal[:-1]))
    else:
        schedule = None if name.startswith("edm") else diffusion.linear_schedule()
    if schedule is None:
        network = mixture.preconditioned(
            lambda x, sigma: mixture.denoised(x, 1.0, sigma), lambda t: jnp.exp(4 * t)
        )
    else:
        network = mixture.network(mixture.level_of(sigma_table(training_signal(schedule))))
    p = jnp.linspace(0.02, 0.98, 41)
    start, end = (
        mixture.quantile(p, 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio))
        for ratio in (HIGH, LOW)
    )
    return schedule, network, start, end


def kind_of(name):
    """A sampler of the same problem, so that those run one program."""
    if name in TRAINING:
        return TRAINING[0]
    return "edm_euler" if name.startswith("edm") else "euler"


@functools.partial(jax.jit, static_argnums=0)
def _run(kind, table, x):
    return diffusion.sample(problem(kind)[1], table, x, jax.random.key(0))


def table_of(name, options, steps, schedule):
    """A table from σ = HIGH to LOW in so many steps."""
    if name in TRAINING:
        stride = TIMESTEPS // steps
        return diffusion.sampler(
            name, schedule, steps, steps_offset=stride - 1, final=LOW, pad_to=1024,
            dtype=np.float64, **options,
        )  # fmt: skip
    levels = np.exp(np.linspace(np.log(HIGH), np.log(LOW), steps + 1))
    return diffusion.sampler(
        name, schedule, None, sigmas=levels[:-1], final=levels[-1], start=0, pad_to=1024,
        dtype=np.float64, **options,
    )  # fmt: skip


def error(name, options, steps):
    """(root mean square error, evaluations) of a sampler; wants float64 enabled."""
    kind = kind_of(name)
    schedule, _, start, exact = problem(kind)
    table = table_of(name, options, steps, schedule)
    x = _run(kind, table, start)
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

    figure, axes = plt.subplots(figsize=(10, 6))
    for i, (name, result) in enumerate(results.items()):
        errors, evaluations = zip(*result["errors"], strict=True)
        label = f"{name} ({result['order']:.1f})"
        style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10]}
        axes.loglog(evaluations, errors, marker="os^"[i // 10], ms=3, label=label, **style)
    axes.set_xlabel("evaluations of the network")
    axes.set_ylabel("root mean square error")
    axes.legend(title="measured order", fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
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
