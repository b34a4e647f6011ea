"""Timesteps, noise and losses of the diffusion objectives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import diffusion
from sdjax.diffusion import sampler_from_config, schedule_from_config
from sdjax.errors import SdjaxError
from sdjax.training import DenoisingConfig, ScheduleConfig
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives import denoising
from sdjax.training.objectives.denoising import dropped, sampled_posterior
from sdjax.training.recipes.export import scheduler_config

KEYS = image_keys(0, 0, 0, 4096)
EACH = DenoisingConfig(stratified=False)
# Compiled, as a training step has them.
draw_timesteps = jax.jit(denoising.draw_timesteps, static_argnums=0)
noised = jax.jit(denoising.noised, static_argnums=0)
losses = jax.jit(denoising.losses, static_argnums=0)


def test_uniform_timesteps_cover_the_schedule_evenly():
    t = np.asarray(draw_timesteps(EACH, KEYS))
    assert t.dtype == np.int32 and t.min() >= 0 and t.max() <= 999
    counts = np.histogram(t, 10, (0, 1000))[0]
    # 4096 draws: a bin holds 410 with a standard deviation of 19.
    assert np.abs(counts - 409.6).max() < 5 * 19.2


def test_stratified_timesteps_fall_one_into_each_stratum():
    t = np.sort(draw_timesteps(dataclasses.replace(EACH, stratified=True), KEYS[:100]))
    assert np.abs(np.diff(t) - 10).max() <= 1


@pytest.mark.parametrize("mean", [-1.0, 0.0, 1.0])
def test_logit_normal_timesteps_have_the_median_of_the_sigmoid(mean):
    config = dataclasses.replace(EACH, timesteps="logit_normal", timestep_mean=mean)
    median = np.median(draw_timesteps(config, KEYS)) / 1000
    assert median == pytest.approx(1 / (1 + np.exp(-mean)), abs=0.02)


def test_each_image_may_have_a_mean_of_its_own():
    config = dataclasses.replace(EACH, timesteps="logit_normal", timestep_std=0.5)
    other = dataclasses.replace(config, timestep_mean=2.0)
    marked = np.arange(len(KEYS)) % 3 == 0
    mixed = draw_timesteps(config, KEYS, np.where(marked, 2.0, 0.0))
    expected = np.where(marked, draw_timesteps(other, KEYS), draw_timesteps(config, KEYS))
    np.testing.assert_array_equal(mixed, expected)


def test_a_power_prefers_high_noise():
    config = dataclasses.replace(EACH, timesteps="power", timestep_power=3.0)
    t = np.asarray(draw_timesteps(config, KEYS)) / 1000
    # The density 3t² has the mean 3/4.
    assert t.mean() == pytest.approx(0.75, abs=0.015)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "x_0"])
def test_the_true_prediction_has_no_loss(prediction):
    config = DenoisingConfig(prediction=prediction, weighting="min_snr")
    schedule = config.schedule.build()
    x_0 = jax.random.normal(jax.random.key(1), (64, 4, 4, 2))
    given = noised(config, schedule, x_0, KEYS[:64])
    truth = diffusion.convert_prediction(
        schedule, given.x_0, given.x_t, given.t, "x_0", prediction
    )
    np.testing.assert_allclose(losses(config, schedule, given, truth), 0, atol=1e-6)
    weight = diffusion.loss_weight(schedule, given.t, prediction, "min_snr")
    off = losses(config, schedule, given, truth + 1)
    np.testing.assert_allclose(off, weight, rtol=1e-3)


def test_noise_is_an_image_s_own():
    config = EACH
    schedule = config.schedule.build()
    x_0 = jnp.zeros((8, 4, 4, 2))
    whole = noised(config, schedule, x_0, KEYS[:8])
    part = noised(config, schedule, x_0[2:4], KEYS[2:4])
    np.testing.assert_array_equal(whole.noise[2:4], part.noise)
    np.testing.assert_array_equal(whole.t[2:4], part.t)
    latents = sampled_posterior(KEYS[:8], x_0, jnp.ones_like(x_0))
    correlation = np.corrcoef(np.ravel(latents), np.ravel(whole.noise))[0, 1]
    assert abs(correlation) < 4 / 16  # 256 values


def test_noise_offset_moves_whole_channels():
    config = dataclasses.replace(EACH, noise_offset=0.5)
    schedule = config.schedule.build()
    x_0 = jnp.zeros((512, 16, 16, 2))
    means = np.asarray(noised(config, schedule, x_0, KEYS[:512]).noise).mean((1, 2))
    # The offset's variance and that of a mean of 256 values.
    assert means.std() == pytest.approx(np.sqrt(0.25 + 1 / 256), rel=0.1)
    assert abs(np.corrcoef(means.T)[0, 1]) < 0.2


def test_conditions_are_dropped_at_their_rate():
    assert np.mean(dropped(KEYS, 0.1)) == pytest.approx(0.1, abs=0.02)
    assert not np.any(dropped(KEYS, 0.0))


def test_learned_variance_adds_the_bound_for_the_variance_only():
    config = DenoisingConfig(ScheduleConfig("linear", 1e-4, 0.02), prediction="epsilon")
    schedule = config.schedule.build()
    x_0 = jax.random.uniform(jax.random.key(1), (8, 4, 4, 1), minval=-1)
    given = noised(config, schedule, x_0, KEYS[:8])

    def total(prediction, fraction=None):
        return losses(config, schedule, given, prediction, fraction).sum()

    guess, half = given.noise + 0.1, jnp.full_like(x_0, 0.5)
    by_prediction, by_fraction = jax.jit(jax.grad(total, (0, 1)))(guess, half)
    plain = jax.jit(jax.grad(total))(guess)
    np.testing.assert_allclose(by_prediction, plain, rtol=1e-6)
    assert np.abs(by_fraction).sum() > 0


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_every_schedule_is_exported(name, zero_terminal_snr):
    schedule = ScheduleConfig(name, zero_terminal_snr=zero_terminal_snr)
    exported = scheduler_config(DenoisingConfig(schedule), clip_sample=False)
    read, built = schedule_from_config(exported), schedule.build()
    np.testing.assert_allclose(read.alphas_cumprod, built.alphas_cumprod, atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sampler", [None, "heun", "unipc", "dpmpp_2m", "euler_a"])
@pytest.mark.parametrize("name", ["cosine", "sigmoid"])
def test_an_exported_scheduler_carries_a_network_that_errs(name, sampler):
    """The picture is 0, and each prediction of ε off by 0.01: 10 times that is left of it."""
    denoising = DenoisingConfig(ScheduleConfig(name), prediction="epsilon")
    exported = scheduler_config(denoising, clip_sample=False)
    table = sampler_from_config(exported, 30, sampler)
    signal = np.append(schedule_from_config(exported).alphas_cumprod, 0)

    def denoise(x, t):
        alpha_bar = jnp.interp(t, np.arange(len(signal)), signal)
        return x / jnp.sqrt(1 - alpha_bar) + 0.01

    made = diffusion.sample(denoise, table, jnp.ones((1, 4)), jax.random.key(0))
    assert np.abs(made).max() < 0.2
    with pytest.warns(UserWarning, match="noisiest"):
        sampler_from_config({**exported, "timestep_spacing": "trailing"}, 30, sampler)


def test_a_spacing_to_the_end_stays_where_the_network_knows_the_picture_there():
    cosine, linear = ScheduleConfig("cosine"), ScheduleConfig("linear", 1e-4, 0.02)
    for denoising, clip in (
        (DenoisingConfig(cosine), False),
        (DenoisingConfig(cosine, prediction="epsilon"), True),
        (DenoisingConfig(linear, prediction="epsilon"), False),
    ):
        assert scheduler_config(denoising, clip)["timestep_spacing"] == "trailing"


def test_epsilon_without_signal_is_refused():
    with pytest.raises(SdjaxError, match="zero_terminal_snr"):
        DenoisingConfig(ScheduleConfig(zero_terminal_snr=True), prediction="epsilon")


@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
@pytest.mark.parametrize("prediction", ["x_0", "v_prediction"])
def test_a_schedule_that_ends_in_noise_is_built_inside_a_compiled_step(prediction, weighting):
    config = DenoisingConfig(ScheduleConfig(zero_terminal_snr=True), prediction, "mse", weighting)
    x_0 = jax.random.normal(jax.random.key(1), (len(KEYS), 2, 2, 1))

    def mean_loss(scale):
        schedule = config.schedule.build()
        given = denoising.noised(config, schedule, x_0, KEYS)
        by_image = denoising.losses(config, schedule, given, scale * given.x_t)
        return by_image.mean(), (schedule, given, by_image)

    run = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    (loss, (inside, given, by_image)), gradient = run(0.5)
    outside = config.schedule.build()
    jax.tree.map(np.testing.assert_array_equal, inside, outside)
    assert outside.alphas_cumprod[-1] == 0
    assert np.isfinite(loss) and np.isfinite(gradient) and np.isfinite(by_image).all()
    (last,) = np.nonzero(given.t == 999)
    np.testing.assert_array_equal(given.x_t[last], given.noise[last])
    if weighting == "uniform":
        target = {"x_0": given.x_0, "v_prediction": -given.x_0}[prediction]
        wanted = ((0.5 * given.noise - target)[last] ** 2).mean((1, 2, 3))
        assert len(last) and by_image[last] == pytest.approx(np.asarray(wanted), rel=1e-5)
