"""The benchmarks of this room run, at sizes that take seconds."""

import json

import numpy as np

from benchmarks import sampler_steps, sampling_loop, solver_order


def test_solver_order_writes_what_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(solver_order, "RESULTS", tmp_path)
    monkeypatch.setattr(
        solver_order, "SOLVERS", {name: solver_order.SOLVERS[name] for name in ("Heun", "DEIS 2")}
    )
    solver_order.problem.cache_clear()
    drawn = []
    monkeypatch.setattr(solver_order, "plot", lambda results, path: drawn.append(results))
    solver_order.main(steps=(24, 48))
    solver_order.problem.cache_clear()
    written = json.loads((tmp_path / "solver_order.json").read_text())
    assert set(written["results"]) == {"Heun", "DEIS 2"} == set(drawn[0])


def test_solver_order_plot(tmp_path):
    results = {"Euler": {"errors": [(0.1, 10), (0.05, 20)], "order": 1.0}}
    solver_order.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_sampling_loop_counts_compilations(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling_loop, "RESULTS", tmp_path)

    def build(batch):
        import jax

        from sdjax import diffusion

        def evaluate(params, x, t):
            return params * x

        def sample(params, table, x, key):
            return diffusion.sample(lambda x, t: evaluate(params, x, t), table, x, key)

        return 0.5, jax.jit(evaluate), jax.jit(sample)

    monkeypatch.setattr(sampling_loop, "build", build)
    sampling_loop.main(batch=1, steps=3, rounds=2)
    written = json.loads((tmp_path / "sampling_loop.json").read_text())
    assert written["recompiled"] == 0 and written["compiled"] == 1
    assert set(written["results"]) == {"network", *sampling_loop.SAMPLERS}


def test_energy_distance():
    random = np.random.RandomState(0)
    a, b = random.randn(2, 400, 8)
    near, far = sampler_steps.energy_distance(a, b), sampler_steps.energy_distance(a, b + 1)
    assert 0 <= near < 0.02 and far > 10 * near


def test_sampler_steps_plot(tmp_path):
    rows = [{"evaluations": n, "distance": 1 / n, "error": 1 / n} for n in (4, 8)]
    sampler_steps.plot({"DDIM": rows, "DDPM": rows}, 0.01, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
