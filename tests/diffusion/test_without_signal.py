"""Schedules that end without signal, or almost so: every sampler is finite there, and right."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax import diffusion
from sdjax.diffusion.samplers import SAMPLERS, check_options, option_names
from sdjax.diffusion.tables import Row, build_table
from sdjax.errors import SdjaxError

# The last level of a schedule without signal counts as σ/α = 4096, and those before it are higher.
RISING = {
    "linear": (diffusion.zero_terminal_snr(diffusion.linear_schedule()), [999, 998, 600, 200, 3]),
    "long": (diffusion.zero_terminal_snr(diffusion.linear_schedule(num_timesteps=2000)), None),
    "long scaled": (
        diffusion.zero_terminal_snr(diffusion.scaled_linear_schedule(num_timesteps=2000)),
        [1999, 1998, 1997, 1300, 500],
    ),
}  # fmt: skip
STOCHASTIC = (
    ("euler_a", {}),
    ("euler_a", {"eta": 0.5}),
    ("dpm2_a", {}),
    ("dpmpp_sde", {}),
    ("dpmpp_2s_a", {}),
    ("dpmpp_2s_a", {"eta": 1.5}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_2m_sde", {"eta": 0.5}),
    ("dpmpp_3m_sde", {}),
    ("dpmpp_2m", {"algorithm": "sde_dpm", "final": "sigma_min"}),
    ("dpmpp_2s", {"algorithm": "sde_dpmpp"}),
)


@pytest.mark.parametrize("which", RISING)
def test_every_sampler_has_a_table_where_the_levels_rise(which):
    """Of numbers that are finite: `build_table` refuses others."""
    schedule, timesteps = RISING[which]
    steps = 10 if timesteps is None else None
    for name, entry in SAMPLERS.items():
        if entry.needs_schedule and "inverse" not in name:
            options = {"timesteps": timesteps} if timesteps else {"spacing": "trailing"}
            options = {k: v for k, v in options.items() if k in entry.option_names[0]}
            table = diffusion.sampler(
                name, schedule, steps, prediction_type="v_prediction", **options
            )
            assert table.evaluations >= 5, name


@pytest.mark.parametrize(("name", "options"), STOCHASTIC)
def test_a_step_up_keeps_the_variance(name, options):
    """Of pictures that are all zero, x is noise of the level that it is told, also up there."""
    schedule, _ = RISING["long"]
    table = diffusion.sampler(
        name, schedule, 10, prediction_type="x_0", spacing="trailing", **options
    )
    x = jax.random.normal(jax.random.key(0), (1, 40_000))
    _, xs = run(table, x)
    size = np.asarray(xs[:2]).std(axis=(1, 2)) * table.rows.input_scale[1:3]
    # The noise form takes ε as constant over a step, which the long second one is not made for.
    np.testing.assert_allclose(size[:1] if "algorithm" in options else size, 1, atol=0.02)


@jax.jit
def run(table, x):
    return diffusion.sample(
        lambda x, t: jnp.zeros_like(x), table, x, jax.random.key(1), trajectory=True
    )


def test_from_data_to_noise_no_noise_is_added():
    schedule = diffusion.scaled_linear_schedule()
    for name, options, message in (
        ("ddim_inverse", {"eta": 0.5}, "eta adds noise"),
        ("dpmpp_2m_inverse", {"algorithm": "sde_dpmpp"}, "'sde_dpmpp' adds noise"),
    ):
        with pytest.raises(SdjaxError, match=message):
            diffusion.sampler(name, schedule, 5, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final": -1.0}, "final must be"),
        ({"final": np.nan}, "final must be"),
        ({"sigmas": "karras", "sigma_min": -1.0}, "sigma_min and sigma_max must"),
        ({"sigmas": "beta", "sigma_max": np.inf}, "sigma_max must be a finite number"),
        ({"sigmas": "lu", "sigma_min": 10.0, "sigma_max": 1.0}, "sigma_min and sigma_max must"),
        ({"sigmas": "karras", "rho": 0}, "rho must be"),
    ],
)
def test_levels_that_are_none_are_refused(options, message):
    with pytest.raises(SdjaxError, match=message):
        diffusion.sampler("euler", diffusion.scaled_linear_schedule(), 5, **options)
    with pytest.raises(SdjaxError, match="sigma_min and sigma_max must"):
        diffusion.sampler("edm_heun", None, 5, sigma_min=0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, (-1.0) ** 0.5])
def test_coefficients_that_are_no_numbers_are_refused(wrong):
    row = Row(timestep=1.0, x=(1.0, 0.0, wrong))
    with pytest.raises(SdjaxError, match="no finite numbers"):
        build_table([row], initial_scale=1.0, start=(0.0, 1.0))


# A Gaussian of mean 0.7 and deviation 0.5, its network of ε with an error of 0.01.
COSINE = diffusion.cosine_schedule()
SIGNAL = np.asarray(COSINE.alphas_cumprod, np.float64)
MEAN, DEVIATION = 0.7, 0.5


def network(x, t, library):
    """ε of the Gaussian at a fractional timestep, for arrays of JAX or PyTorch."""
    log_ratio = np.log((1 - SIGNAL) / SIGNAL) / 2
    if library is torch:
        level = np.exp(np.interp(float(t), np.arange(1000), log_ratio))
    else:
        level = jnp.exp(jnp.interp(t, jnp.arange(1000), log_ratio))
    alpha = 1 / (level**2 + 1) ** 0.5
    sigma = alpha * level
    exact = sigma * (x - alpha * MEAN) / ((alpha * DEVIATION) ** 2 + sigma**2)
    return exact + 0.01 * library.sin(3 * x)


@jax.jit
def of_gaussian(table, x):
    return diffusion.sample(lambda x, t: network(x, t, jnp), table, x, jax.random.key(2))


START = np.random.RandomState(0).randn(2000, 3).astype(np.float32)
SPREAD = [name for name, entry in SAMPLERS.items() if "spacing" in entry.option_names[0]]
SPREAD = [name for name in SPREAD if "inverse" not in name]


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_cosine_schedule_is_sampled_by_every_sampler(spacing):
    """With σ/α = 20291 at its end, where it would take a network without any error."""
    for name in SPREAD:
        table = diffusion.sampler(name, COSINE, 30, spacing=spacing)
        x = np.asarray(of_gaussian(table, START))
        np.testing.assert_allclose(x.mean(), MEAN, atol=0.05, err_msg=name)
        np.testing.assert_allclose(x.std(), DEVIATION, atol=0.07, err_msg=name)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"]
)
def test_diffusers_explodes_there_and_so_does_its_configuration_which_says_it(name):
    config = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(20)
    x = torch.tensor(START) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t, torch), t, x).prev_sample
    config["_class_name"] = name
    with pytest.warns(UserWarning, match="starts at timestep 999 .* noisiest=164 starts below"):
        table = diffusion.sampler_from_config(config, 20)
    assert x.std() > 4 * DEVIATION
    np.testing.assert_allclose(of_gaussian(table, START).std(), x.std(), rtol=0.02)
    below = diffusion.sampler_from_config(config, 20, noisiest=164)
    np.testing.assert_allclose(of_gaussian(below, START).std(), DEVIATION, atol=0.1)


def test_the_limit_is_an_option_of_requests():
    """With `generate`, which checks options before it makes a table."""
    assert "noisiest" in option_names()
    check_options("heun", {"noisiest": 164})
    check_options(None, {"noisiest": np.inf})


def test_where_the_noisiest_timesteps_stay():
    """Bounded x_0, other predictions, steps that are told, every timestep, other schedules."""
    last = [
        diffusion.sampler("euler", COSINE, 20, clip=1.0),
        diffusion.sampler("euler", COSINE, 20, prediction_type="v_prediction"),
        diffusion.sampler("euler", COSINE, 20, noisiest=np.inf),
        diffusion.sampler("euler", COSINE, None, timesteps=[999, 500]),
        diffusion.sampler("ddpm", COSINE, 1000, spacing="trailing"),
        diffusion.sampler("ddpm", COSINE, 1000),
        diffusion.sampler("heun", diffusion.linear_schedule(), 20),
    ]
    assert [table.timesteps[0] for table in last] == [999] * 7
    below = int((np.asarray(COSINE.sigmas) <= np.exp(5.1)).sum()) - 1
    assert diffusion.sampler("heun", COSINE, 20).timesteps[0] == below > 990
    for name, options, message in (
        ("euler", {"noisiest": 0}, "noisiest must be a number above 0"),
        ("euler", {"noisiest": 1e-9}, "below the schedule's lowest level"),
        ("lcm", {"noisiest": 100.0}, "lcm starts where it was trained to"),
        ("euler", {"noisiest": 9.0, "timesteps": [9, 1]}, "does not go with a list"),
    ):
        with pytest.raises(SdjaxError, match=message):
            diffusion.sampler(name, COSINE, None if "timesteps" in options else 4, **options)
