"""Schedules that end without signal, or almost so: every sampler is finite there, and right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import diffusion
from sdjax.diffusion.samplers import SAMPLERS
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
        ({"sigmas": "beta", "sigma_max": np.inf}, "sigma_min and sigma_max must"),
        ({"sigmas": "lu", "sigma_min": 10.0, "sigma_max": 1.0}, "sigma_min and sigma_max must"),
        ({"sigmas": "karras", "rho": 0}, "rho must be"),
    ],
)
def test_levels_that_are_none_are_refused(options, message):
    with pytest.raises(SdjaxError, match=message):
        diffusion.sampler("euler", diffusion.scaled_linear_schedule(), 5, **options)
    with pytest.raises(SdjaxError, match="sigma_min and sigma_max must"):
        diffusion.sampler("edm_heun", None, 5, sigma_min=0)


def test_coefficients_that_are_no_numbers_are_refused():
    with pytest.raises(SdjaxError, match="no finite numbers"):
        diffusion.sampler("edm_heun", None, 5, sigma_data=np.nan)
