"""The text-to-image objective."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.training import DenoisingConfig, LatentObjective, Lesson
from sdjax.training.loop.step import image_keys
from tests.training.small import LATENT

KEYS = image_keys(0, 0, 0, 4)


def objective(**changes):
    return LatentObjective(dataclasses.replace(LATENT.diffusion, **changes), LATENT.autoencoder.vae)


@pytest.fixture(scope="module")
def params():
    # What a fresh network would give is 0, whatever its caption.
    shapes = jax.eval_shape(objective().init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    random = np.random.default_rng(0)
    return tree.unflatten([np.float32(0.2) * random.normal(size=x.shape) for x in leaves])


def loss(params, ids, empty, lesson=None, **changes):
    batch = {"mean": jnp.ones((4, 16, 16, 8)), "std": jnp.ones((4, 16, 16, 8)), "ids": ids}
    if lesson is not None:
        batch["lesson"] = np.full(4, lesson)
    return jax.jit(objective(**changes).loss)(params, {"empty_ids": empty}, batch, KEYS)[0]


def test_dropped_captions_are_the_empty_prompt(params):
    captions, others = np.full((4, 24), 3, np.int32), np.full((4, 24), 5, np.int32)
    always = 1 - 1e-7  # of float32 draws below 1
    kept = loss(params, captions, others[0], caption_dropout=0.0)
    assert loss(params, others, captions[0], caption_dropout=always) == kept
    assert loss(params, others, captions[0], caption_dropout=0.0) != kept


def test_a_lesson_shifts_the_timesteps_of_its_images_only(params):
    ids = np.full((4, 24), 3, np.int32)
    low, high = (
        DenoisingConfig(timesteps="logit_normal", timestep_mean=mean) for mean in (-1.0, 2.0)
    )
    plain, shifted = (loss(params, ids, ids[0], denoising=config) for config in (low, high))
    assert plain != shifted
    curriculum = Lesson(8), Lesson(8, timestep_mean=2.0)
    for lesson, expected in enumerate((plain, shifted, plain)):
        given = loss(params, ids, ids[0], lesson, denoising=low, curriculum=curriculum)
        np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_remat_holds_for_the_text_encoder_too(params):
    ids = jnp.zeros((4, 24), jnp.int32)
    for remat in (False, True):
        program = jax.make_jaxpr(objective(remat=remat)._context)(params, {}, ids)
        assert ("remat" in str(program)) == remat
