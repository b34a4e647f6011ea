"""What a model that repaints or edits is given, whichever adaptation is trained on it."""

import dataclasses

import jax
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.training import TuningRun, adaptations
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.tuning import empty_ids, tuned
from sdjax.training.recipes.texts import encoded
from tests.training.small import small_model

TEXTS = ["a red cat", "a dog"]


@pytest.fixture(scope="module")
def model():
    return small_model(TEXTS)


def widened(model, channels):
    """(networks, parameters) of the same model with random further channels at its input."""
    networks = adaptations.Networks.of(model)
    unet = networks.unet.clone(
        config=dataclasses.replace(networks.unet.config, in_channels=channels))
    params = jax.tree.map(np.asarray, dict(model.params))
    kernel = params["unet"]["conv_in"]["kernel"]
    shape = (*kernel.shape[:2], channels - kernel.shape[2], kernel.shape[3])
    more = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    conv = {**params["unet"]["conv_in"], "kernel": np.concatenate([kernel, more], axis=2)}
    params["unet"] = {**params["unet"], "conv_in": conv}
    return dataclasses.replace(networks, unet=unet), params


def loss_before_training(adaptation, networks, params, scheduler, batch):
    objective = tuned(TuningRun(adaptation=adaptation), networks, scheduler)
    frozen = {**params, **empty_ids(objective.networks)}
    tree = objective.init(jax.random.key(0), frozen)
    keys = image_keys(0, 0, 0, 2)
    loss, _ = jax.jit(objective.loss)(tree, objective.kept(frozen), batch, keys)
    return float(loss), objective.adaptation


def test_a_lora_sees_the_masks_that_the_whole_model_is_trained_with(model):
    networks, params = widened(model, 17)
    random = np.random.default_rng(1)
    batch = {"image": random.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32),
             **encoded(networks.tokenizers, TEXTS)}
    given = networks, params, model.scheduler_config, batch
    lora, adaptation = loss_before_training(adaptations.LoRA(rank=1), *given)
    whole, _ = loss_before_training(adaptations.Inpaint(), *given)
    assert adaptation.needs == ("image",)
    np.testing.assert_allclose(lora, whole, rtol=1e-5)


def test_a_model_that_edits_needs_the_pictures_before_and_others_are_told(model):
    networks, _ = widened(model, 16)
    found = tuned(TuningRun(), networks, model.scheduler_config).adaptation
    assert found.needs == ("original",) and isinstance(found, adaptations.LoRA)
    assert adaptations.LoRA().needs == ()  # its own is what it was
    with pytest.raises(SdjaxError, match="ControlNet cannot be trained on a U-Net of 16 channels"):
        tuned(TuningRun(adaptation=adaptations.ControlNet()), networks, model.scheduler_config)
    networks, _ = widened(model, 11)
    with pytest.raises(SdjaxError, match="of 11 channels: expected 8, or those of one that rep"):
        tuned(TuningRun(), networks, model.scheduler_config)
