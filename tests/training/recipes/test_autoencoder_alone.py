"""A model's autoencoder trained against an adversary, from start to finish."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from sdjax.data import DataConfig
from sdjax.errors import SdjaxError
from sdjax.training import Recipe, load_config, train
from sdjax.weights import VAE
from tests.training.small import LATENT, RUN, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    small_model(["a red cat"]).save_pretrained(folder)
    return folder


def recipe(model, pictures, **options):
    given = load_config("autoencoder_gan")
    adversary = dataclasses.replace(given.autoencoder.adversary, width=4, layers=1, start=2)
    changes = {**RUN, "steps": 4, "sheet_images": 2, "adversary": adversary, **options}
    changes["optimizer"] = dataclasses.replace(given.autoencoder.optimizer, learning_rate=1e-3)
    return dataclasses.replace(
        given, data=DataConfig(f"folder:{pictures}", image_size=32, require_captions=False),
        model=str(model), autoencoder=dataclasses.replace(given.autoencoder, **changes))


def test_a_decoder_is_trained_and_the_encoder_stays(model, tmp_path):
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    asked = recipe(model, tmp_path)
    work = tmp_path / "work"
    stopped = dataclasses.replace(asked, autoencoder=dataclasses.replace(
        asked.autoencoder, max_minutes=1e-6))
    assert not train(stopped, work)
    assert train(asked, work)
    (old, before), (new, after) = (
        VAE.from_pretrained(folder) for folder in (model / "vae", work / "autoencoder/model"))
    assert new.config == old.config
    for part in ("encoder", "quant_conv"):
        jax.tree.map(np.testing.assert_array_equal, after[part], before[part])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after["decoder"], before["decoder"])
    assert max(jax.tree.leaves(moved)) > 1e-5
    assert "discriminator" not in after and "log_variance" not in after


def test_what_does_not_go_together_is_told():
    with pytest.raises(SdjaxError, match="without diffusion a recipe trains an autoencoder"):
        Recipe(diffusion=None)
    decoder = dataclasses.replace(LATENT.autoencoder, trained="decoder")
    with pytest.raises(SdjaxError, match="'decoder' is for that of a model"):
        dataclasses.replace(LATENT, autoencoder=decoder)
