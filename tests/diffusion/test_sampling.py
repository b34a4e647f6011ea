"""The loop: one program, one image's independence of its batch, and JAX's transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import diffusion
from sdjax.diffusion import brownian_noise
from sdjax.diffusion.noise import brownian_motion
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.errors import SdjaxError

SCHEDULE = diffusion.scaled_linear_schedule()
SHAPE = (3, 4, 4, 2)
NOISE = jax.random.normal(jax.random.key(1), SHAPE)
KEY = jax.random.key(7)
NEEDS_SCHEDULE = [name for name in SAMPLERS if not name.startswith(("edm", "crash", "consist"))]


def denoise(x, t, strength=0.8):
    return strength * jnp.sin(1.3 * x) * (0.5 + t / 2000)


def table_of(name, steps=4, **options):
    return diffusion.sampler(name, SCHEDULE, steps, **options)


@functools.partial(jax.jit, static_argnames="noise")
def run(table, x, key, strength=0.8, noise=None):
    return diffusion.sample(lambda x, t: denoise(x, t, strength), table, x, key, noise=noise)


@functools.partial(jax.jit, static_argnums=0, static_argnames="callback")
def run_with(denoise, table, x, key, given=None, state=None, callback=None):
    """Any network, given noise, a state, a callback."""
    return diffusion.sample(denoise, table, x, key, noise=given, state=state, callback=callback)


def test_samplers_steps_seeds_and_conditions_share_one_program():
    run.clear_cache()
    for name in SAMPLERS:
        steps = 8 if name in ("dpm2", "heun") else 30
        x = run(table_of(name, steps), NOISE, KEY, 0.8)
        assert np.isfinite(x).all(), name
    for seed, strength in ((1, 0.5), (2, 0.9)):
        run(table_of("ddim", 17, clip=1.0), NOISE, jax.random.key(seed), strength)
    for name in SAMPLERS:
        run(table_of(name, 11), NOISE * 0.5, jax.random.key(3), 0.7)
    assert run._cache_size() == 1


@pytest.mark.parametrize("noise", [None, brownian_noise])
@pytest.mark.parametrize("name", ["ddpm", "euler_a", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "tcd"])
def test_image_of_a_batch_is_the_image_made_alone(name, noise):
    keys = jax.random.split(KEY, 3)
    table = table_of(name)
    together = run(table, NOISE, keys, noise=noise)
    for i in range(3):
        alone = run(table, NOISE[i : i + 1], keys[i : i + 1], noise=noise)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)
    folded = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
    np.testing.assert_array_equal(run(table, NOISE, KEY), run(table, NOISE, folded))
    raw = jax.random.key_data(folded)
    np.testing.assert_array_equal(run(table, NOISE, raw), run(table, NOISE, folded))


def test_a_longer_table_is_another_program():
    """What is said of it: up to 64 evaluations share one, then up to the next power of two."""
    for name, steps, evaluations, rows in (
        ("ddim", 64, 64, 64), ("ddim", 65, 65, 128), ("dpmpp_2m", 200, 200, 256),
        ("heun", 32, 63, 64), ("heun", 33, 65, 128), ("dpmpp_sde", 33, 65, 128),
    ):  # fmt: skip
        table = table_of(name, steps)
        assert (table.evaluations, len(table.rows.kind)) == (evaluations, rows)
    assert len(table_of("euler", 33, churn=5.0).rows.kind) == 128  # a row that adds noise, a step


def test_different_seeds_differ():
    table = table_of("euler_a")
    first, second = run(table, NOISE, jax.random.key(0)), run(table, NOISE, jax.random.key(1))
    assert np.abs(first - second).max() > 0.1


def test_padding_changes_nothing():
    np.testing.assert_array_equal(
        run(table_of("ddpm"), NOISE, KEY), run(table_of("ddpm", pad_to=5), NOISE, KEY)
    )
    with pytest.raises(SdjaxError, match="raise pad_to"):
        table_of("ddpm", pad_to=3)


def test_jit_vmap_pmap_and_scan_agree():
    table = table_of("dpmpp_2m_sde")
    keys = jax.random.split(KEY, 3)
    plain = run(table, NOISE, keys)
    with jax.disable_jit():
        short = table_of("dpmpp_2m_sde", pad_to=4)
        eager = diffusion.sample(denoise, short, NOISE, keys)
    np.testing.assert_allclose(eager, plain, rtol=1e-5, atol=1e-6)

    def one(x, key):
        return diffusion.sample(denoise, table, x[None], key[None])[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(one))(NOISE, keys), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        jax.pmap(one)(NOISE[:2], keys[:2]), plain[:2], rtol=1e-5, atol=1e-6
    )
    scanned = jax.jit(lambda xs: jax.lax.scan(lambda _, x: (_, one(*x)), 0, xs)[1])((NOISE, keys))
    np.testing.assert_allclose(scanned, plain, rtol=1e-5, atol=1e-6)


def test_vmap_over_tables():
    tables = [table_of(name) for name in ("ddim", "heun", "unipc")]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)
    together = jax.jit(jax.vmap(lambda table: diffusion.sample(denoise, table, NOISE, KEY)))(
        stacked
    )
    for table, x in zip(tables, together, strict=True):
        np.testing.assert_allclose(run(table, NOISE, KEY), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_gradient_through_the_sampler(name):
    """By finite differences, in the network's parameter and in the initial noise."""
    table = table_of(name)

    def loss(strength, scale):
        return (run(table, scale * NOISE, KEY, strength) ** 2).mean()

    slopes = jax.jit(jax.grad(loss, (0, 1)))(0.8, 1.0)
    for i, slope in enumerate(slopes):
        low, high = [0.8, 1.0], [0.8, 1.0]
        low[i] -= 1e-2
        high[i] += 1e-2
        np.testing.assert_allclose(slope, (loss(*high) - loss(*low)) / 2e-2, rtol=2e-2)


def test_learned_variance_interpolates_the_noise():
    fixed = {
        kind: table_of("ddpm", variance=kind) for kind in ("fixed_small", "fixed_large")
    }
    learned = table_of("ddpm", variance="learned_range")

    @jax.jit
    def with_fraction(fraction):
        return diffusion.sample(
            lambda x, t: (denoise(x, t), jnp.full_like(x, fraction)), learned, NOISE, KEY
        )

    for fraction, kind in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        np.testing.assert_allclose(
            with_fraction(fraction), run(fixed[kind], NOISE, KEY), rtol=1e-4, atol=1e-5
        )
    assert np.abs(with_fraction(0.5) - with_fraction(0.0)).max() > 1e-3


def test_clipping_and_dynamic_thresholding():
    def far(x, t):
        return 3 * x

    table = table_of("ddim", prediction_type="x_0", clip=0.5)
    clipped = run_with(far, table, NOISE, KEY)
    assert np.abs(clipped).max() <= 0.5 + 1e-6
    table = table_of("ddim", 1, prediction_type="x_0", threshold=(0.8, 2.0))
    got = run_with(far, table, NOISE, KEY)
    bound = np.clip(np.quantile(np.abs(3 * NOISE).reshape(3, -1), 0.8, axis=1), 1, 2)
    bound = bound.reshape(3, 1, 1, 1)
    np.testing.assert_allclose(got, np.clip(3 * NOISE, -bound, bound) / bound, rtol=1e-5)


def test_noise_is_drawn_only_where_it_is_added():
    drawn = []

    def noise(keys, index, row, like):
        jax.debug.callback(lambda index: drawn.append(int(index)), index)
        return jnp.zeros_like(like)

    for name, rows in (("ddim", []), ("euler_a", [0, 1, 2]), ("dpmpp_sde", [0, 1, 2, 3, 4, 5])):
        run(table_of(name), NOISE, KEY, noise=noise)
        jax.effects_barrier()
        assert sorted(drawn) == rows
        drawn.clear()


def test_given_noise_is_used_row_by_row():
    table = table_of("ddpm")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
    draws = jnp.stack(
        [
            jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, row), SHAPE[1:]))(keys)
            for row in range(4)
        ]
    )
    np.testing.assert_allclose(
        run_with(denoise, table, NOISE, KEY, draws), run(table, NOISE, KEY), rtol=1e-5, atol=1e-6
    )
    assert list(table.noise_rows) == [0, 1, 2]
    with pytest.raises(SdjaxError, match="noise must have shape"):
        diffusion.sample(denoise, table, NOISE, KEY, noise=draws[:, :2])


def test_without_noise_no_key_is_needed():
    table = table_of("dpmpp_2m")
    expected = run(table, NOISE, KEY)
    np.testing.assert_array_equal(run(table, NOISE, None), expected)
    inside = jax.jit(lambda x: diffusion.sample(denoise, table, x))(NOISE)
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-6)

    noisy = table_of("euler_a")
    with pytest.raises(SdjaxError, match="this table adds noise and needs a random key"):
        diffusion.sample(denoise, noisy, NOISE)
    with pytest.raises(SdjaxError, match="needs a random key"):
        diffusion.sample(denoise, noisy, NOISE, noise=brownian_noise)
    assert np.isnan(run(noisy, NOISE, None)).all()  # the table is traced: it cannot be known
    given = np.zeros((64, *SHAPE), np.float32)
    without = run_with(denoise, noisy, NOISE, None, given)
    np.testing.assert_array_equal(without, run_with(denoise, noisy, NOISE, KEY, given))
    for wrong in (7, 1.5, np.zeros(2, np.int32)):
        with pytest.raises(SdjaxError, match="expected random keys"):
            diffusion.sample(denoise, table, NOISE, wrong)


def test_state_is_carried_from_step_to_step():
    """Momentum: the mean of all predictions so far."""

    def remembering(x, t, state):
        total, count = state
        total, count = total + denoise(x, t), count + 1
        return total / count, (total, count)

    table, seen = table_of("euler", 3), []

    def forgetful(x, t):
        seen.append(denoise(x, t))
        return sum(seen) / len(seen)

    state = (jnp.zeros_like(NOISE), jnp.zeros(()))
    got = run_with(remembering, table, NOISE, KEY, state=state)
    x = NOISE * table.initial_scale
    rows = table.rows
    for i in range(3):
        x = x + rows.update[i, 0, 2] * forgetful(rows.input_scale[i] * x, rows.timestep[i])
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


def test_callback_tells_and_stops():
    table, seen = table_of("heun", 3), []

    def callback(index, t, x_0):
        seen.append((int(index), float(t), np.asarray(x_0)))

    x = run_with(denoise, table, NOISE, KEY, callback=callback)
    np.testing.assert_allclose(x, run(table, NOISE, KEY), rtol=1e-5, atol=1e-6)
    assert [row for row, _, _ in seen] == list(range(5))
    np.testing.assert_allclose([t for _, t, _ in seen], table.timesteps)

    stopped = run_with(denoise, table, NOISE, KEY, callback=lambda index, t, x_0: index == 2)
    np.testing.assert_allclose(stopped, seen[2][2], rtol=1e-5, atol=1e-6)


def test_trajectory_ends_in_the_sample():
    table = table_of("ddim")
    x, steps = jax.jit(
        lambda x: diffusion.sample(denoise, table, x, KEY, trajectory=True)
    )(NOISE)
    np.testing.assert_array_equal(steps[-1], x)
    np.testing.assert_array_equal(steps[3], x)
    assert np.abs(steps[2] - x).max() > 1e-3


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "unipc", "plms", "ddpm", "dpmpp_sde"])
def test_a_table_in_parts_is_the_table_whole(name):
    """Bit for bit, in one program, whatever the registers hold where a part ends."""
    table = table_of(name, 6)
    evaluations = np.flatnonzero(np.asarray(table.rows.kind))
    going_on = jax.jit(lambda table, underway: diffusion.sample(denoise, table, underway, KEY))
    start = jax.jit(diffusion.begin)(table, NOISE)
    whole = going_on(table, start)
    np.testing.assert_allclose(whole.x, run(table, NOISE, KEY), rtol=1e-5, atol=1e-5)
    underway, ends = start, (1, int(evaluations[-2]), len(table.rows.kind))
    for first, last in zip((0, *ends), ends, strict=False):
        underway = going_on(table.part(first, last), underway)
    np.testing.assert_array_equal(underway.x, whole.x)
    assert going_on._cache_size() <= 2  # the first x comes from another program


def test_a_callback_ends_all_later_parts():
    table = table_of("ddim", 4)
    stop = functools.partial(
        diffusion.sample, denoise, key=KEY, callback=lambda index, t, x_0: index == 1
    )
    early = stop(table.part(0, 3), diffusion.begin(table, NOISE))
    assert bool(early.stopped)
    np.testing.assert_array_equal(stop(table.part(3, 64), early).x, early.x)


def perfect(x, t):
    return jnp.clip(NOISE, -1, 1)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m", "plms"])
def test_starting_from_a_noised_sample_is_continuing(name):
    """A perfect network leads back to the sample, from whatever step."""
    x_0 = jnp.clip(NOISE, -1, 1)
    table = table_of(name, 12, prediction_type="x_0", start=5, final="zero")
    noised = table.noised(x_0, jax.random.normal(KEY, SHAPE))
    np.testing.assert_allclose(run_with(perfect, table, noised, KEY), x_0, atol=1e-4)
    assert table.evaluations < table_of(name, 12).evaluations


def test_other_arrays_and_dtypes():
    table = table_of("dpmpp_2m")
    for shape in ((5,), (2, 3, 4, 5, 6)):
        assert run(table, jnp.ones(shape), KEY).shape == shape
    half = run_with(lambda x, t: x.astype(jnp.bfloat16), table, NOISE.astype(jnp.bfloat16), KEY)
    assert half.dtype == jnp.float32
    with pytest.raises(SdjaxError, match="leading batch axis"):
        diffusion.sample(denoise, table, jnp.ones(()), KEY)
    with pytest.raises(SdjaxError, match="expected one key or 3 keys"):
        diffusion.sample(denoise, table, NOISE, jax.random.split(KEY, 2))


def test_zero_terminal_snr_is_finite_for_every_sampler_and_prediction():
    schedule = diffusion.zero_terminal_snr(SCHEDULE)
    for name in NEEDS_SCHEDULE:
        for kind in ("epsilon", "v_prediction", "x_0"):
            spacing = {} if name in ("lcm", "tcd", "dpmpp_2m_inverse") else {"spacing": "trailing"}
            table = diffusion.sampler(name, schedule, 4, prediction_type=kind, **spacing)
            if "inverse" in name:
                continue
            assert np.isfinite(run(table, NOISE, KEY)).all(), (name, kind)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "lcm"])
def test_without_signal_a_clipped_x_0_is_at_its_bounds(name):
    """Where ε is told and x − ε is not nothing, x_0 is infinite before it is clipped."""
    schedule, spacing = diffusion.zero_terminal_snr(SCHEDULE), {"spacing": "trailing"}
    table = diffusion.sampler(
        name, schedule, 1, clip=1.3, **({} if name == "lcm" else spacing)
    )
    x = run_with(lambda x, t: x * t / (t + 1), table, NOISE, KEY)
    np.testing.assert_allclose(x, 1.3 * jnp.sign(NOISE), rtol=1e-5)


def test_brownian_motion_has_its_covariance():
    """Cov(W(s), W(t)) = min(s, t), over many paths."""
    times = jnp.array([0.1, 0.35, 0.8, 1.0])
    paths = jax.vmap(lambda time: brownian_motion(KEY, time, (20000,)))(times)
    np.testing.assert_allclose(
        np.cov(paths), np.minimum(times[:, None], times[None]), atol=0.02
    )


def test_brownian_noise_has_unit_variance_in_every_row():
    """However small the steps and however high the levels."""
    tables = [
        diffusion.sampler("ddpm", diffusion.zero_terminal_snr(SCHEDULE), 1000),
        table_of("euler_a", 250),
        table_of("euler_a", 20, sigmas="karras", sigma_max=25.0),
        table_of("euler_a", 10, sigmas="ays_svd"),
        table_of("dpmpp_2m_sde", 100, sigmas="karras"),
    ]
    rows = jax.tree.map(lambda *columns: np.concatenate(columns), *(t.rows for t in tables))
    rows = jax.tree.map(lambda column: column[rows.noise != 0], rows)
    draw = jax.jit(jax.vmap(lambda row: brownian_noise(KEY[None], 0, row, jnp.zeros((1, 300)))))
    size = np.asarray(draw(rows)).std(axis=(1, 2))
    np.testing.assert_allclose(size, 1, atol=5 / np.sqrt(2 * 300))
    np.testing.assert_allclose((size**2).mean(), 1, atol=1e-2)


def test_brownian_noise_changes_little_with_the_number_of_steps():
    """The paths are the same, so more steps refine one picture; independent noise makes another."""

    def distance(noise):
        coarse = run(table_of("dpmpp_2m_sde", 30, sigmas="karras"), NOISE, KEY, noise=noise)
        fine = run(table_of("dpmpp_2m_sde", 50, sigmas="karras"), NOISE, KEY, noise=noise)
        return float(jnp.sqrt(((coarse - fine) ** 2).mean()))

    assert distance(brownian_noise) < 0.6 * distance(None)


@pytest.mark.parametrize("noise", [None, brownian_noise], ids=["independent", "brownian"])
def test_each_item_has_a_table_of_its_own(noise):
    """Of other samplers, steps and starts, with rows that only add noise, state and what is kept:
    each item of one batch is what it is alone."""
    tables = [
        table_of("euler", 5, churn=2.0, churn_min=0.5, churn_max=5.0),
        table_of("dpmpp_2m", 9, start=4),
        table_of("heun", 4),
        table_of("dpmpp_sde", 40),
        table_of("ddim", 6, eta=1.0, clip=2.0),
    ]
    assert {1, 2} == set(np.unique(tables[0].rows.kind[:6]))
    x = jax.random.normal(jax.random.key(0), (5, 4, 3))
    keys = jax.random.split(jax.random.key(1), 5)

    def run(table, x, keys):
        def denoise(x, t, count):
            t = jnp.broadcast_to(t, (len(x), 1, 1)) if t.ndim == 0 else t[:, None, None]
            return jnp.sin(x + t / 300) + 0.01 * count[:, None, None], count + 1

        def keep(x, level):
            level = jnp.broadcast_to(level, (len(x), 2))[..., None, None]
            return jnp.where(jnp.arange(3) == 0, level[:, 0] + 2 * level[:, 1], x)

        state = jnp.zeros(len(x), jnp.int32)
        return jax.jit(lambda *a: diffusion.sample(
            denoise, a[0], a[1], a[2], noise=noise, state=state, keep=keep
        ))(table, x, keys)  # fmt: skip

    together = run(diffusion.stacked(tables), x, keys)
    for i, table in enumerate(tables):
        alone = run(table, x[i : i + 1], keys[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-5)
    assert diffusion.stacked(tables[1:3]).evaluations == 7
