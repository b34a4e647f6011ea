"""What a table says of the signal and the noise in x after each row, and keeping by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import diffusion
from sdjax.diffusion.samplers import SAMPLERS

SCHEDULE = diffusion.scaled_linear_schedule(0.00085, 0.012, 1000)
# They go upwards, put new noise in the place of ε, or begin where no signal is.
UNSETTLED = (
    "ddim_inverse", "dpmpp_2m_inverse", "lcm", "tcd", "consistency", "crash_ipndm"
)  # fmt: skip
SETTLED = [
    name
    for name in SAMPLERS
    if name not in UNSETTLED and not diffusion.sampler(name, SCHEDULE, 5).noise_rows.size
]


@pytest.mark.parametrize("name", SETTLED)
def test_x_is_at_the_level_that_the_table_tells(name):
    """With exact predictions a deterministic sampler stays on the line from x_0 to ε."""
    x_0, noise = np.random.default_rng(0).normal(size=(2, 5))
    table = diffusion.sampler(name, SCHEDULE, 7, start=0, dtype=np.float64)
    x = table.initial_scale * table.noised(x_0, noise)
    y, history = 0 * x, [0 * x] * 3
    evaluated = np.flatnonzero(table.rows.kind)
    for row in evaluated:
        outer, p, q = table.rows.x_0[row]
        u, v, w = table.rows.derivative[row]
        prediction = (x_0 / outer - p * x) / q
        derivative = u * x + v * x_0 + w * prediction
        terms = np.stack([x, y, derivative, *history])
        x, y = table.rows.update[row] @ terms
        if table.rows.remember[row]:
            history = [derivative, *history[:2]]
        signal, sigma = table.rows.after[row]
        if row != evaluated[-1]:
            np.testing.assert_allclose(x, signal * x_0 + sigma * noise, atol=2e-4 * (1 + sigma))
    assert (signal, sigma) == (1, 0)


def test_what_is_kept_ends_as_it_is_and_is_noised_on_the_way():
    x_0, noise = np.float32(np.random.default_rng(0).normal(size=(2, 1, 6)))
    repainted = np.arange(6) < 3
    table = diffusion.sampler("euler_a", SCHEDULE, 5)
    seen = []

    def keep(x, level):
        return jnp.where(repainted, x, level[0] * x_0 + level[1] * noise)

    def denoise(x, t):
        jax.debug.callback(lambda x: seen.append(x), x, ordered=True)
        return 0.1 * x

    key = jax.random.key(0)
    kept = diffusion.sample(denoise, table, noise, key, keep=keep)
    free = diffusion.sample(lambda x, t: 0.1 * x, table, noise, key)
    np.testing.assert_array_equal(kept[:, ~repainted], x_0[:, ~repainted])
    np.testing.assert_array_equal(kept[:, repainted], free[:, repainted])
    alphas = np.interp(table.timesteps, np.arange(1000), SCHEDULE.alphas_cumprod)
    for x, alpha in list(zip(seen, alphas, strict=True))[1:]:
        expected = alpha**0.5 * x_0 + (1 - alpha) ** 0.5 * noise
        np.testing.assert_allclose(x[:, ~repainted], expected[:, ~repainted], rtol=1e-4, atol=1e-5)
