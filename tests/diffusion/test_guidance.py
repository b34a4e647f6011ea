"""Guidance against its formulas, and how often the network is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.guider_utils import rescale_noise_cfg

from sdjax import diffusion
from sdjax.diffusion import guidance

KEYS = jax.random.split(jax.random.key(0), 4)
C, U, P, Q = (jax.random.normal(key, (3, 4, 5, 2)) for key in KEYS)


def to_torch(x):
    return torch.tensor(np.asarray(x))


def test_classifier_free_guidance_and_its_ends():
    np.testing.assert_allclose(diffusion.classifier_free_guidance(C, U, 1.0), C, atol=1e-6)
    np.testing.assert_allclose(diffusion.classifier_free_guidance(C, U, 0.0), U, atol=1e-6)
    got = diffusion.classifier_free_guidance(C, U, jnp.array([1.0, 3.0, 7.5]))
    np.testing.assert_allclose(got[2], U[2] + 7.5 * (C[2] - U[2]), atol=1e-5)


def test_rescale_is_diffusers():
    got = diffusion.classifier_free_guidance(C, U, 7.5, rescale=0.7)
    plain = diffusion.classifier_free_guidance(C, U, 7.5)
    theirs = rescale_noise_cfg(to_torch(plain), to_torch(C), guidance_rescale=0.7)
    np.testing.assert_allclose(got, theirs, rtol=1e-5, atol=1e-6)


def test_interval():
    scales = guidance.interval_scale(jnp.array([10.0, 300.0, 900.0]), 5.0, 100.0, 800.0)
    np.testing.assert_array_equal(scales, [1, 5, 1])


def test_composition_of_one_prompt_is_plain_guidance():
    one = guidance.composed_guidance(C[None], U, [3.0])
    np.testing.assert_allclose(one, diffusion.classifier_free_guidance(C, U, 3.0), atol=1e-6)
    two = guidance.composed_guidance(jnp.stack([C, P]), U, [2.0, -1.0])
    np.testing.assert_allclose(two, U + 2 * (C - U) - (P - U), atol=1e-5)


def test_instruct_pix2pix_and_perturbed_attention():
    got = guidance.instruct_pix2pix_guidance(C, P, U, 7.5, 1.5)
    np.testing.assert_allclose(got, U + 7.5 * (C - P) + 1.5 * (P - U), atol=1e-5)
    got = guidance.perturbed_attention_guidance(C, U, P, 4.0, 3.0)
    np.testing.assert_allclose(got, U + 4 * (C - U) + 3 * (C - P), atol=1e-5)


def test_cfg_zero_star_is_diffusers():
    fit = cfg_zero_star_scale(to_torch(C).flatten(1), to_torch(U).flatten(1)).reshape(3, 1, 1, 1)
    expected = np.asarray(fit) * U + 5.0 * (C - np.asarray(fit) * U)
    np.testing.assert_allclose(guidance.cfg_zero_star(C, U, 5.0), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(guidance.cfg_zero_star(C, U, 5.0, jnp.bool_(True)), 0)


def test_adaptive_projected_guidance_is_diffusers():
    buffer, momentum = MomentumBuffer(-0.5), guidance.Momentum(jnp.zeros_like(C))
    for conditional, unconditional in ((C, U), (P, Q)):
        got, momentum = guidance.adaptive_projected_guidance(
            conditional, unconditional, 6.0, momentum, eta=0.3, radius=5.0
        )
        expected = normalized_guidance(
            to_torch(conditional), to_torch(unconditional), 5.0, buffer, 0.3, 5.0, True
        )
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_autoguidance_is_guidance_away_from_a_weaker_model():
    np.testing.assert_allclose(
        diffusion.classifier_free_guidance(C, Q, 2.0), 2 * C - Q, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("scale", "evaluated"), [(1.0, 2), (4.0, 4)])
def test_guidance_one_costs_one_evaluation(scale, evaluated):
    seen = []

    def predict(x, t, condition):
        jax.debug.callback(lambda x: seen.append(len(x)), x)
        return x * 0.1 + condition

    table = diffusion.sampler("euler", diffusion.scaled_linear_schedule(), 3)
    ones = jnp.ones((2, 4))
    denoise = jax.jit(
        lambda scale, x: diffusion.sample(
            guidance.guided(predict, ones, 0 * ones, scale), table, x, jax.random.key(0)
        )
    )
    x = denoise(scale, jax.random.normal(jax.random.key(0), (2, 4)))
    jax.effects_barrier()
    assert seen == [evaluated] * 3 and np.isfinite(x).all()


def test_guidance_interval_is_followed_inside_the_loop():
    seen = []

    def predict(x, t, condition):
        jax.debug.callback(lambda x: seen.append(len(x)), x, ordered=True)
        return x * 0.1 + condition

    table = diffusion.sampler("ddim", diffusion.scaled_linear_schedule(), 5)  # 800, 600, … 0
    denoise = guidance.guided(
        predict, jnp.ones((1, 4)), jnp.zeros((1, 4)),
        lambda t: guidance.interval_scale(t, 5.0, 150, 650),
    )  # fmt: skip
    diffusion.sample(denoise, table, jnp.ones((1, 4)), jax.random.key(0))
    jax.effects_barrier()
    assert seen == [1, 2, 2, 2, 1]
