"""The autoencoder's objective and the normalization of its latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.models import VAE, VAEConfig
from sdjax.training import AutoencoderObjective, AutoencoderRun, OptimizerConfig
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.autoencoder import as_float, normalized
from sdjax.training.recipes.datasets import encode_all, latent_statistics

CONFIG = VAEConfig(
    latent_channels=2, block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, mid_block_add_attention=False,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)


def brightness(images):
    """A feature function."""
    return {"mean": images.mean((1, 2))}


@pytest.fixture(scope="module")
def params():
    return jax.jit(VAE(CONFIG).init)(jax.random.key(0))


def test_the_loss_is_the_sum_of_its_terms(params):
    keys = image_keys(0, 0, 0, len(IMAGES))
    objective = AutoencoderObjective(
        AutoencoderRun(vae=CONFIG, kl_weight=0.1, perceptual=f"{__name__}:brightness",
                       perceptual_weight=0.5),
        brightness,
    )
    total, terms = jax.jit(objective.loss)(params, {}, {"image": IMAGES}, keys)
    wanted = terms["reconstruction"] + 0.1 * terms["kl"] + 0.5 * terms["perceptual"]
    assert total == pytest.approx(float(wanted), rel=1e-6)
    mean, log_variance = jax.jit(VAE(CONFIG).posterior)(params, as_float(IMAGES))
    kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum() / IMAGES.size
    assert terms["kl"] == pytest.approx(float(kl), rel=1e-5)


def test_l2_is_the_squared_error(params):
    objective = AutoencoderObjective(AutoencoderRun(vae=CONFIG, reconstruction="l2"))
    keys = image_keys(0, 0, 0, len(IMAGES))
    _, terms = jax.jit(objective.loss)(params, {}, {"image": IMAGES}, keys)
    assert terms["reconstruction"] == terms["squared_error"]


def test_remat_recomputes_in_the_backward_pass(params):
    keys = image_keys(0, 0, 0, len(IMAGES))
    for remat in (False, True):
        loss = AutoencoderObjective(AutoencoderRun(vae=CONFIG, remat=remat)).loss
        program = jax.make_jaxpr(loss)(params, {}, {"image": IMAGES}, keys)
        assert ("remat" in str(program)) == remat


def test_normalizing_changes_the_latents_and_no_picture(params):
    vae = VAE(CONFIG)
    mean, std = latent_statistics(*encode_all(vae, params, IMAGES))
    config, new = normalized(CONFIG, params, mean, std)
    assert config.scaling_factor == 1.0
    center, deviation = latent_statistics(*encode_all(vae, new, IMAGES))
    np.testing.assert_allclose(center, 0, atol=1e-4)
    np.testing.assert_allclose(deviation, 1, rtol=1e-4)
    there_and_back = jax.jit(lambda p, x, key: vae.decode(p, vae.encode(p, x, key)))
    before, after = (there_and_back(p, as_float(IMAGES), jax.random.key(1)) for p in (params, new))
    np.testing.assert_allclose(after, before, atol=2e-5)


def test_statistics_are_those_of_samples():
    rng = np.random.default_rng(0)
    mean = rng.normal(3, 2, (64, 8, 8, 2)).astype(np.float32)
    std = np.full_like(mean, 1.5)
    center, deviation = latent_statistics(mean, std)
    np.testing.assert_allclose(center, 3, atol=0.15)
    np.testing.assert_allclose(deviation, 2.5, rtol=0.03)


def test_a_run_s_values_fit_together():
    with pytest.raises(SdjaxError, match="given together"):
        AutoencoderRun(perceptual_weight=0.1)
    assert AutoencoderRun(optimizer=OptimizerConfig()).vae == VAEConfig()
