"""Solvers on a mixture of Gaussians: order of convergence, and the distribution of samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import mixture, solver_order
from sdjax import diffusion
from sdjax.diffusion.grids import sigma_table
from sdjax.diffusion.samplers import training_signal

SCHEDULE = diffusion.scaled_linear_schedule()
COUNT = 3000
# Kolmogorov–Smirnov: a true sampler fails with these fixed seeds in one of a thousand cases.
CRITICAL = 1.95 / np.sqrt(COUNT)


@pytest.fixture(scope="module")
def float64():
    solver_order.problem.cache_clear()
    with jax.enable_x64(True):
        yield
    solver_order.problem.cache_clear()


@pytest.mark.parametrize("name", solver_order.SOLVERS)
def test_order(name, float64):
    sampler, options, theory = solver_order.SOLVERS[name]
    errors = [solver_order.error(sampler, options, steps) for steps in (192, 384)]
    assert abs(solver_order.measured_order(errors) - theory) < 0.25
    assert errors[-1][0] < 1e-2


@functools.partial(jax.jit, static_argnames=("noise", "mapped"))
def _samples(table, key, noise=None, mapped=False):
    level = mixture.level_of(sigma_table(training_signal(SCHEDULE)))

    def to_the_end(x, t):
        """The consistency function: the ODE's exact solution from any level."""
        return mixture.quantile(mixture.cdf(x, *level(t)), 1.0, 0.0)

    x = jax.random.normal(jax.random.fold_in(key, 1), (COUNT,))
    network = to_the_end if mapped else mixture.network(level)
    return diffusion.sample(network, table, x, key, noise=noise)


def distance(x):
    """Largest difference of the empirical distribution and the data's."""
    true = np.asarray(mixture.cdf(jnp.sort(x), 1.0, 0.0))
    steps = np.arange(COUNT + 1) / COUNT
    return max(np.abs(true - steps[1:]).max(), np.abs(true - steps[:-1]).max())


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("ddpm", 500, {}),
        ("ddim", 250, {"eta": 1.0}),
        ("ddim", 250, {"eta": 0.5}),
        ("euler_a", 250, {}),
        ("dpm2_a", 100, {}),
        ("dpmpp_2s_a", 100, {}),
        ("dpmpp_sde", 100, {"sigmas": "karras"}),
        ("dpmpp_2m_sde", 100, {"sigmas": "karras"}),
        ("dpmpp_2m_sde", 100, {"sigmas": "karras", "solver": "heun"}),
        ("dpmpp_3m_sde", 100, {"sigmas": "karras"}),
        ("euler", 250, {"churn": 40.0}),
        ("heun", 120, {"churn": 40.0}),
        ("heun", 120, {"churn": 60.0, "churn_min": 0.05, "churn_max": 50.0}),
        ("ddpm", 500, {"variance": "fixed_large"}),
        ("euler_a", 250, {"eta": 0.5}),
        ("dpmpp_2m_sde", 100, {"sigmas": "karras", "eta": 0.5}),
        ("dpmpp_2m", 150, {"algorithm": "sde_dpm", "sigmas": "karras", "final": "sigma_min"}),
        ("tcd", 250, {"eta": 0.05, "original_steps": 250}),
    ],
)
def test_stochastic_samplers_have_the_right_distribution(name, steps, options):
    table = diffusion.sampler(name, SCHEDULE, steps, pad_to=512, **options)
    assert len(table.noise_rows) > 0
    assert distance(_samples(table, jax.random.key(3))) < CRITICAL


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "euler_a", "dpmpp_sde"])
def test_brownian_noise_keeps_the_distribution(name):
    table = diffusion.sampler(name, SCHEDULE, 150, pad_to=512)
    x = _samples(table, jax.random.key(3), noise=diffusion.brownian_noise)
    assert distance(x) < CRITICAL


@functools.partial(jax.jit, static_argnames=("low", "mapped"))
def _preconditioned_samples(table, key, low=0.0, mapped=False):
    """With a network whose x_0 = c_skip·x + c_out·F is the best one, or the ODE's solution."""

    def best(x, sigma):
        return mixture.denoised(x, 1.0, sigma)

    def solution(x, sigma):
        return mixture.quantile(mixture.cdf(x, 1.0, sigma), 1.0, 0.0)

    def level(t):
        return jnp.exp(t / 250 if mapped else 4 * t)

    network = mixture.preconditioned(solution if mapped else best, level, boundary=low)
    x = jax.random.normal(jax.random.fold_in(key, 1), (COUNT,))
    return diffusion.sample(network, table, x, key)


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [("edm_euler", 250, {"churn": 40.0}), ("edm_heun", 60, {"churn": 20.0, "churn_noise": 1.0}),
     ("edm_dpmpp_2m", 100, {"algorithm": "sde_dpmpp"})],
)  # fmt: skip
def test_preconditioned_samplers_have_the_right_distribution(name, steps, options):
    table = diffusion.sampler(name, None, steps, pad_to=512, **options)
    assert len(table.noise_rows) > 0
    assert distance(_preconditioned_samples(table, jax.random.key(3))) < CRITICAL


def test_consistency_models_have_the_right_distribution_in_few_steps():
    table = diffusion.sampler("consistency", None, 3, pad_to=512)
    x = _preconditioned_samples(table, jax.random.key(3), low=0.002, mapped=True)
    assert distance(x) < CRITICAL


@pytest.mark.parametrize(("name", "options"), [("lcm", {"timestep_scaling": 1e4}), ("lcm", {})])
def test_consistency_sampling_has_the_right_distribution_in_few_steps(name, options):
    table = diffusion.sampler(
        name, SCHEDULE, 4, prediction_type="x_0", pad_to=512, **options
    )
    assert distance(_samples(table, jax.random.key(3), mapped=True)) < CRITICAL


def test_deterministic_solvers_have_the_right_distribution_too():
    for name in ("ddim", "dpmpp_2m", "unipc"):
        table = diffusion.sampler(name, SCHEDULE, 50, pad_to=512)
        assert distance(_samples(table, jax.random.key(3))) < 1.5 * CRITICAL


def test_a_wrong_distribution_is_seen():
    """Too few steps, and noise of the wrong size."""
    table = diffusion.sampler("ddpm", SCHEDULE, 10, pad_to=512, variance="fixed_large")
    assert distance(_samples(table, jax.random.key(3))) > CRITICAL
