"""The benchmarks of this room run, at sizes that take seconds."""

import json

import numpy as np
import pytest

from benchmarks import common, sampler_steps, sampling_loop, solver_order


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
    assert written["programs_of_requests"] == 1
    alone = {sampling_loop.CALLS, sampling_loop.BARE}
    assert set(written["results"]) == {*alone, *sampling_loop.SAMPLERS, sampling_loop.ALL}
    for name in alone:
        assert written["results"][name]["wall_overhead"][name] == 0


def test_the_committed_figures_of_the_loop_are_as_wanted():
    written = json.loads((common.RESULTS / "sampling_loop.json").read_text())
    overhead = written["results"][sampling_loop.ALL]["wall_overhead"]
    assert max(overhead.values()) <= sampling_loop.WANTED and written["recompiled"] == 0


def test_overheads_are_medians_of_the_rounds_ratios():
    taken, alone = [(1.1, 2.0), (2.4, 2.0), (10.0, 2.0)], [(1.0, 2.0), (2.0, 1.0), (2.0, 2.0)]
    np.testing.assert_allclose(sampling_loop.overheads(taken, alone), (0.2, 0.0))


def test_energy_distance():
    random = np.random.RandomState(0)
    a, b = random.randn(2, 400, 8)
    near, far = sampler_steps.energy_distance(a, b), sampler_steps.energy_distance(a, b + 1)
    assert 0 <= near < 0.02 and far > 10 * near


def test_a_sampler_takes_as_many_steps_as_its_evaluations_allow():
    config = {"_class_name": "DDIMScheduler"}
    for name, budget, steps in (("ddim", 6, 6), ("heun", 6, 3), ("plms", 6, 5), ("heun", 1, 1)):
        assert sampler_steps.steps_within(budget, config, name, {}) == steps


def test_sampler_steps_measures_and_writes_its_page(tmp_path):
    """With networks of which the samplers' steps alone decide the error."""

    def latents(name, options, steps, seed):
        made = np.random.RandomState(seed % 2**32).randn(20, 4)
        return made * (1 + 1 / steps) if name == "ddim" else made + 1 / steps

    config = {"_class_name": "DDIMScheduler"}
    measured = sampler_steps.measure(latents, config, (4, 8), 100)
    coarse, fine = measured["results"]["DDIM"]
    assert coarse["error"] > 1.8 * fine["error"] > 0
    assert "error" not in measured["results"]["DDPM"][0]
    assert set(measured["results"]) == {*sampler_steps.DETERMINISTIC, *sampler_steps.STOCHASTIC}
    sampler_steps.plot(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000

    settings = {"model": "emoji", "prompts": ["red apple"], "images": 5, "guidance_scale": 2.0,
                "reference_steps": 100}  # fmt: skip
    page = tmp_path / "page.md"
    marks = "<!-- sampler_steps: written by the command -->\n{}<!-- /sampler_steps -->"
    page.write_text("before\n" + marks.format("old") + "\nafter\n")
    text = sampler_steps.markdown(measured, (4, 8), settings)
    for _ in range(2):
        sampler_steps.write_between_marks(page, text)
        assert page.read_text() == "before\n" + marks.format(text) + "\nafter\n"
    assert f"| DDIM | {coarse['error']:.2g} | {fine['error']:.2g} |" in text
    assert text.count("| DDPM |") == 1 and text.count("| DDIM |") == 2
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must have the marks"):
        sampler_steps.write_between_marks(page, text)
