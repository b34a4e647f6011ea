"""Schedules, the forward process, predictions and losses against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import diffusion
from sdjax.diffusion.schedules import sigmoid_beta_schedule
from sdjax.errors import SdjaxError

SCHEDULES = {
    "linear": diffusion.linear_schedule(),
    "scaled_linear": diffusion.scaled_linear_schedule(),
    "cosine": diffusion.cosine_schedule(),
    "sigmoid": diffusion.sigmoid_schedule(),
    "zero": diffusion.zero_terminal_snr(diffusion.scaled_linear_schedule()),
}
KINDS = ("x_0", "epsilon", "v_prediction", "score")


def test_known_values():
    """Ho et al.'s and Stable Diffusion's levels; cosine and sigmoid by their formula."""
    linear, scaled = SCHEDULES["linear"], SCHEDULES["scaled_linear"]
    np.testing.assert_allclose(linear.alphas_cumprod[999], 4.0358e-5, rtol=1e-4)
    np.testing.assert_allclose(
        np.asarray(scaled.alphas_cumprod)[[0, 499, 999]], [0.99914998, 0.27766943, 0.0046601], 1e-6
    )
    np.testing.assert_allclose(scaled.sigmas[999], 14.614647, 1e-6)
    time = np.arange(1001) / 1000
    cosine = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    cosine = (cosine / cosine[0])[1:-2]
    np.testing.assert_allclose(SCHEDULES["cosine"].alphas_cumprod[:998], cosine, 1e-5)
    sigmoid = 1 / (1 + np.exp(-(time * 6 - 3)))
    level = (sigmoid[-1] - sigmoid) / (sigmoid[-1] - sigmoid[0])
    np.testing.assert_allclose(SCHEDULES["sigmoid"].alphas_cumprod[:998], level[1:-2], 1e-5)
    np.testing.assert_allclose(sigmoid_beta_schedule().betas[0], 0.00014920, 1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_agree_with_each_other(name):
    schedule = SCHEDULES[name]
    assert len(schedule) == 1000
    assert all(x.dtype == jnp.float32 and x.shape == (1000,) for x in jax.tree.leaves(schedule))
    signal = np.asarray(schedule.alphas_cumprod, np.float64)
    np.testing.assert_allclose(schedule.sqrt_alphas_cumprod, np.sqrt(signal), 1e-6)
    np.testing.assert_allclose(schedule.sqrt_one_minus_alphas_cumprod**2 + signal, 1, 1e-6)
    np.testing.assert_allclose(np.asarray(schedule.alphas)[:-1] + schedule.betas[:-1], 1, 1e-6)
    np.testing.assert_allclose(schedule.sigmas[:-1], np.exp(-schedule.log_snr[:-1] / 2), 1e-5)
    assert np.all(np.diff(signal) < 0)


def test_zero_terminal_snr_keeps_the_first_level_and_removes_the_last():
    plain, zero = SCHEDULES["scaled_linear"], SCHEDULES["zero"]
    np.testing.assert_allclose(zero.alphas_cumprod[0], plain.alphas_cumprod[0], 1e-6)
    assert zero.alphas_cumprod[-1] == 0 and zero.betas[-1] == 1
    assert zero.log_snr[-1] == -np.inf and zero.sigmas[-1] == np.inf
    others = [zero.posterior_variance, zero.posterior_mean_coef_x_0, zero.posterior_mean_coef_x_t]
    assert all(np.isfinite(x).all() for x in others)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr_is_as_accurate_as_float64(name):
    """The rescaling in float64 all through; only the last, exact entries have no relative error."""
    betas = {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    }.get(name)
    if name == "cosine":
        level = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999)
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas = (root / np.append(1, root[:-1])) ** 2
    got = diffusion.zero_terminal_snr(SCHEDULES[name])
    expected = {
        "betas": 1 - alphas,
        "alphas": alphas,
        "sqrt_alphas_cumprod": root,
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - root**2),
        "sigmas": np.sqrt(1 - root[:-1] ** 2) / root[:-1],
    }
    for table, values in expected.items():
        found = getattr(got, table)[: len(values)]
        np.testing.assert_allclose(found, values, rtol=5e-7, atol=0, err_msg=table)


@pytest.mark.parametrize("betas", [[], [0.1, 1.2], [[0.1]], [0.0, 0.1], [1.0, 0.1]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(SdjaxError, match="betas must"):
        diffusion.schedule_from_betas(betas)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "zero"])
def test_many_single_steps_are_the_closed_form(name):
    """Mean and variance of x_t, followed step by step through their recurrences."""
    schedule = SCHEDULES[name]
    steps = jnp.arange(1000)

    def mean_after(mean, t):
        mean = diffusion.forward_step(schedule, mean, jnp.zeros(1), t)
        return mean, mean

    def variance_after(variance, t):
        kept = diffusion.forward_step(schedule, jnp.ones(1), jnp.zeros(1), t) ** 2
        variance = kept * variance + diffusion.forward_step(
            schedule, jnp.zeros(1), jnp.ones(1), t
        ) ** 2
        return variance, variance

    _, means = jax.lax.scan(mean_after, jnp.ones(1), steps)
    _, variances = jax.lax.scan(variance_after, jnp.zeros(1), steps)
    np.testing.assert_allclose(means[:, 0], schedule.sqrt_alphas_cumprod, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(
        variances[:, 0], schedule.sqrt_one_minus_alphas_cumprod**2, rtol=2e-4
    )


def test_many_single_steps_of_samples_are_the_closed_form():
    schedule = diffusion.linear_schedule(1e-3, 0.2, 30)
    key, x_0 = jax.random.key(0), jnp.full(40000, 0.7)
    x = x_0
    for t in range(30):
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape)
        x = diffusion.forward_step(schedule, x, noise, t)
    closed = diffusion.add_noise(schedule, x_0, jax.random.normal(key, x.shape), 29)
    np.testing.assert_allclose(x.mean(), closed.mean(), atol=0.02)
    np.testing.assert_allclose(x.std(), closed.std(), atol=0.02)


def test_posterior_is_bayes_rule():
    """Completing the square of q(x_t | x_{t−1})·q(x_{t−1} | x_0)."""
    schedule = SCHEDULES["linear"]
    x_0, x_t = jnp.array([0.3, -0.8]), jnp.array([1.1, 0.2])
    for t in (1, 10, 500, 999):
        alpha, beta = float(schedule.alphas[t]), float(schedule.betas[t])
        before = float(schedule.alphas_cumprod[t - 1])
        precision = alpha / beta + 1 / (1 - before)
        mean = (alpha**0.5 / beta * x_t + before**0.5 / (1 - before) * x_0) / precision
        got, variance, log_variance = diffusion.posterior(schedule, x_0, x_t, t)
        np.testing.assert_allclose(got, mean, rtol=1e-3)
        np.testing.assert_allclose(variance, 1 / precision, rtol=1e-3)
        np.testing.assert_allclose(log_variance, jnp.log(variance), rtol=1e-4)
    mean, variance, _ = diffusion.posterior(schedule, x_0, x_t, 0)
    np.testing.assert_allclose(mean, x_0, rtol=1e-6)
    assert variance == 0


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_every_prediction_from_every_other(source, target):
    schedule = SCHEDULES["scaled_linear"]
    keys = jax.random.split(jax.random.key(0))
    x_0, noise = (jax.random.normal(key, (3, 4, 4, 2)) for key in keys)
    t = jnp.array([20, 500, 999])
    x_t = diffusion.add_noise(schedule, x_0, noise, t)
    alpha = schedule.sqrt_alphas_cumprod[t][:, None, None, None]
    sigma = schedule.sqrt_one_minus_alphas_cumprod[t][:, None, None, None]
    true = {
        "x_0": x_0,
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * x_0,
        "score": -noise / sigma,
    }
    got = diffusion.convert_prediction(schedule, true[source], x_t, t, source, target)
    np.testing.assert_allclose(got, true[target], rtol=1e-3, atol=2e-4)


def test_prediction_names():
    schedule, x = SCHEDULES["linear"], jnp.ones((2, 3))
    same = diffusion.convert_prediction(schedule, x, x, 5, "sample", "x_0")
    np.testing.assert_array_equal(same, x)
    with pytest.raises(SdjaxError, match="unknown prediction 'eps'"):
        diffusion.convert_prediction(schedule, x, x, 5, "eps", "x_0")


def test_the_schedule_may_stand_where_it_once_stood():
    schedule, x, t = SCHEDULES["linear"], jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.array([3, 900])
    convert = diffusion.convert_prediction
    expected = convert(schedule, x, 2 * x, t, "epsilon", "x_0")
    for again in (
        convert(x, 2 * x, t, schedule, "epsilon", "x_0"),
        convert(x, 2 * x, t, schedule, source="epsilon", target="x_0"),
        convert(x, 2 * x, t, schedule=schedule, source="epsilon", target="x_0"),
        convert(x, x_t=2 * x, t=t, schedule=schedule, source="epsilon", target="x_0"),
        convert(
            prediction=x, x_t=2 * x, t=t, schedule=schedule, source="epsilon", target="x_0"
        ),
        jax.jit(convert, static_argnums=(4, 5))(x, 2 * x, t, schedule, "epsilon", "x_0"),
        jax.jit(convert, static_argnums=(4, 5))(schedule, x, 2 * x, t, "epsilon", "x_0"),
    ):
        np.testing.assert_allclose(again, expected, rtol=1e-6)
    for arguments in ((x, 2 * x, t, schedule, "epsilon", "x_0", 1), (x, 2 * x, t, schedule)):
        with pytest.raises(TypeError):
            convert(*arguments)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_a_schedule_may_be_built_inside_a_traced_function(name):
    """Its numbers are constants there, and tables can be made of it."""
    make = getattr(diffusion, f"{name}_schedule")

    def noised(x):
        schedule = diffusion.zero_terminal_snr(make(num_timesteps=20))
        table = diffusion.sampler("ddim", schedule, 4, prediction_type="v_prediction")
        assert table.evaluations == 4
        return diffusion.add_noise(schedule, x, 0 * x, 7).sum()

    x, schedule = jnp.ones((3, 2)), diffusion.zero_terminal_snr(make(num_timesteps=20))
    expected = diffusion.add_noise(schedule, x, 0 * x, 7)
    np.testing.assert_allclose(jax.jit(noised)(x), expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(noised))(x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(noised)(x), expected.sum(axis=1), rtol=1e-6)


def test_what_needs_numbers_says_it_of_traced_ones():
    schedule = SCHEDULES["linear"]
    config = {"_class_name": "DDIMScheduler"}
    table = diffusion.sampler("euler_a", schedule, 3)
    for name, function, given in (
        ("linear_schedule", lambda end: diffusion.linear_schedule(1e-4, end), 0.02),
        ("schedule_from_betas", diffusion.schedule_from_betas, jnp.full(5, 0.1)),
        ("cosine_schedule", lambda s: diffusion.cosine_schedule(10, s), 0.008),
        ("zero_terminal_snr", diffusion.zero_terminal_snr, schedule),
        ("sampler", lambda schedule: diffusion.sampler("ddim", schedule, 3), schedule),
        ("sampler", lambda eta: diffusion.sampler("ddim", schedule, 3, eta=eta), 0.5),
        ("sampler_from_config",
         lambda eta: diffusion.sampler_from_config(config, 3, eta=eta), 0.5),
        ("schedule_from_config",
         lambda betas: diffusion.schedule_from_config({**config, "trained_betas": betas}),
         jnp.full(5, 0.1)),
        ("timesteps", lambda table: table.timesteps, table),
        ("evaluations", lambda table: table.evaluations, table),
        ("noise_rows", lambda table: table.noise_rows, table),
        ("part", lambda table: table.part(0, 2), table),
        ("torch_noise", lambda table: diffusion.torch_noise([1], table, (4, 4, 1)), table),
    ):  # fmt: skip
        with pytest.raises(SdjaxError, match=f"^{name} computes on the host and needs numbers"):
            jax.jit(function)(given)


def test_polynomial_is_the_published_formula():
    """Of e3_diffusion_for_molecules' predefined schedule: γ = log σ² − log α² at t/T."""
    steps, precision = 1001, 1e-5
    x = np.linspace(0, steps, steps)
    squares = (1 - (x / steps) ** 2) ** 2
    ratios = np.clip(squares[1:] / squares[:-1], 0.001, 1)
    squares = np.concatenate([[1.0], np.cumprod(ratios)])
    alpha = (1 - 2 * precision) * squares + precision
    found = diffusion.polynomial_schedule()
    np.testing.assert_allclose(found.alphas_cumprod, alpha, rtol=1e-6)
    np.testing.assert_allclose(-found.log_snr, np.log(1 - alpha) - np.log(alpha), rtol=1e-5)
    assert found.alphas_cumprod[0] == np.float32(1 - precision)


@pytest.mark.parametrize(("options", "said"), [
    ({"num_timesteps": 1}, "at least 2"), ({"precision": 0.0}, "between 0 and 0.5"),
])
def test_a_polynomial_schedule_that_is_none(options, said):
    with pytest.raises(SdjaxError, match=said):
        diffusion.polynomial_schedule(**options)
