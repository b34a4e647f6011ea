"""Projections: what they give; sampling stays in the subspace and is a Gaussian's there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import diffusion
from sdjax.diffusion import projected_noise, without_mean
from sdjax.training import DenoisingConfig, ScheduleConfig
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.denoising import losses, noised

SIZES = np.array([5, 3, 1, 4])
MASK = (np.arange(5) < SIZES[:, None])[..., None].astype(np.float32)


def project(x):
    return without_mean(x, MASK, channels=3)


def drawn(seed, count=4):
    return np.random.default_rng(seed).standard_normal((count, 5, 4)).astype(np.float32)


def test_the_mean_is_that_of_what_counts():
    x = drawn(0)
    found = np.asarray(project(x))
    for one, given, size in zip(found, x, SIZES):
        np.testing.assert_allclose(
            one[:size, :3], given[:size, :3] - given[:size, :3].mean(0), atol=1e-6)
        np.testing.assert_array_equal(one[:size, 3], given[:size, 3])
        assert not one[size:].any()


def test_it_is_an_orthogonal_projection():
    x, y = drawn(0), drawn(1)
    once = project(x)
    np.testing.assert_allclose(project(once), once, atol=1e-6)
    np.testing.assert_allclose(np.sum(project(x) * y), np.sum(x * project(y)), rtol=1e-4)


@pytest.mark.parametrize("axis", [1, 2])
def test_without_a_mask_all_counts(axis):
    x = drawn(2)[:, :, :, None].repeat(2, -1)
    np.testing.assert_allclose(
        without_mean(x, axis=axis), x - x.mean(axis, keepdims=True), atol=1e-6)


def test_projected_noise_has_the_subspace_covariance():
    """I − 1/n among the places that count: what is left of a standard Gaussian."""
    mask = jnp.ones((1, 3, 1))
    noise = projected_noise(lambda x: without_mean(x, mask))
    keys = jax.random.split(jax.random.key(0), 20_000)
    values = np.asarray(noise(keys, 0, None, jnp.zeros((20_000, 3, 1))))[..., 0]
    assert np.abs(values.sum(1)).max() < 1e-6
    # A standard error of √2/√20000 = 0.01.
    np.testing.assert_allclose(np.cov(values.T), np.eye(3) - 1 / 3, atol=0.05)


def test_training_noise_is_projected_and_its_loss_masked():
    schedule = ScheduleConfig("polynomial_2", num_timesteps=11).build()
    config = DenoisingConfig(None, "epsilon", input_perturbation=0.1)
    keys, x_0 = image_keys(0, 0, 0, 4), project(drawn(3))
    given = noised(config, schedule, x_0, keys, project=project)
    np.testing.assert_allclose(project(given.noise), given.noise, atol=1e-6)
    np.testing.assert_allclose(project(given.x_t), given.x_t, atol=1e-6)
    plain = noised(config, schedule, x_0, keys)
    np.testing.assert_allclose(project(plain.noise), given.noise, atol=1e-6)
    np.testing.assert_array_equal(plain.t, given.t)
    found = losses(config, schedule, given, jnp.ones(x_0.shape), mask=jnp.asarray(MASK))
    wanted = (MASK * (1 - np.asarray(given.noise)) ** 2).mean((1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["ddpm", "unipc"])
def test_sampling_stays_in_the_subspace(name):
    """Of N(0, c² I) there ε is known, σx/(c²α² + σ²), and samples have its covariance."""
    schedule, c = diffusion.polynomial_schedule(101), 0.5
    table = diffusion.sampler(name, schedule, 100, spacing="trailing")
    level = jnp.asarray(schedule.alphas_cumprod)
    count = 4096

    def denoise(x, t):
        signal = level[t.astype(jnp.int32)]
        return jnp.sqrt(1 - signal) * x / (c**2 * signal + 1 - signal)

    def one_mean(x):
        return without_mean(x)

    noise = projected_noise(one_mean)
    x = one_mean(jax.random.normal(jax.random.key(1), (count, 3, 1)))
    found = np.asarray(jax.jit(lambda x: diffusion.sample(
        denoise, table, x, jax.random.key(2), noise=noise, keep=lambda x, _: one_mean(x)))(x))
    assert np.abs(found.sum(1)).max() < 1e-6
    covariance = found[..., 0].T @ found[..., 0] / count
    np.testing.assert_allclose(covariance, c**2 * (np.eye(3) - 1 / 3), atol=0.03)
