"""Captions in several chunks, and embedded beforehand, in the loss."""

import dataclasses

import jax
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.text.encode import embed
from sdjax.training import TuningRun, adaptations
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.latent_loss import embedded
from sdjax.training.objectives.tuning import empty_ids, tuned
from sdjax.training.recipes import text_cache
from sdjax.training.recipes.text_cache import Contexts, empty_contexts
from sdjax.training.recipes.texts import encoded
from tests.training.small import small_model

TEXTS = ["a red cat " * 6, "a dog"]
LORA = adaptations.LoRA(rank=1)


@pytest.fixture(scope="module")
def model():
    return small_model(TEXTS, second=True)


@pytest.fixture(scope="module")
def networks(model):
    return adaptations.Networks.of(model)


@pytest.mark.parametrize("skip", [0, 1])
def test_chunks_follow_one_another_as_a_prompts_do(model, networks, skip):
    ids = encoded(networks.tokenizers, TEXTS, 3)
    assert ids["ids"].shape == ids["ids_2"].shape == (2, 3, 24)
    found = embedded(networks.encoders, model.params, ids, skip)
    params = [model.params[name] for name in networks.encoders]
    each = [embed(list(networks.encoders.values()), params, [ids["ids"][:, i]] * 2, skip)
            for i in range(3)]
    np.testing.assert_allclose(
        found.context, np.concatenate([own.context for own in each], axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.pooled, each[0].pooled, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_same_of_ids_and_of_what_they_are_embedded_as(model, networks, tmp_path):
    run = TuningRun(adaptation=LORA, text_chunks=2, caption_dropout=0.5, clip_skip=1)
    random = np.random.default_rng(0)
    batch = {"mean": random.normal(size=(4, 4, 4, 8)).astype(np.float32),
             "std": np.zeros((4, 4, 4, 8), np.float32),
             "time_ids": np.full((4, 6), 8, np.float32)}
    texts, keys = TEXTS * 2, image_keys(0, 0, 0, 4)
    losses = {}
    for cached in (False, True):
        own = dataclasses.replace(run, cache_texts=cached)
        objective = tuned(own, networks, model.scheduler_config)
        frozen = {**model.params, **empty_ids(networks)}
        if cached:
            contexts = Contexts(own, networks, model.params, tmp_path / "texts.npz")
            frozen |= empty_contexts(contexts)
            inputs = contexts.of(texts)
        else:
            inputs = encoded(networks.tokenizers, texts, 2)
        tree = objective.init(jax.random.key(0), frozen)
        kept = objective.kept(frozen)
        assert ("text_encoder" in kept) is not cached
        losses[cached], _ = jax.jit(objective.loss)(tree, kept, {**batch, **inputs}, keys)
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-5)


def test_contexts_are_made_once_and_anew_for_what_has_changed(
    model, networks, tmp_path, monkeypatch
):
    asked, embed_all = [], Contexts.embed
    monkeypatch.setattr(Contexts, "embed", lambda self, ids: (
        asked.append(len(ids["ids"])) or embed_all(self, ids)))
    monkeypatch.setattr(text_cache, "CHUNK", 2)
    path = tmp_path / "texts.npz"

    def contexts(run=TuningRun(adaptation=LORA), params=model.params, texts=TEXTS):
        return Contexts(run, networks, params, path).of(texts)

    first = contexts(texts=[*TEXTS, "a dog"])
    again = contexts(texts=["a dog", TEXTS[0]])
    np.testing.assert_array_equal(first["context"][2], again["context"][0])
    assert asked == [2]
    contexts(texts=[*TEXTS, "a cat"])
    assert asked == [2, 1]
    contexts(TuningRun(adaptation=LORA, clip_skip=1))
    second = {**model.params["text_encoder_2"]}
    second["text_projection"] = {"kernel": second["text_projection"]["kernel"] + 1}
    changed = contexts(params={**model.params, "text_encoder_2": second})
    assert asked == [2, 1, 2, 2]
    assert np.abs(changed["pooled"] - first["pooled"][:2]).max() > 1e-3
    with pytest.raises(SdjaxError, match="one caption a picture"):
        contexts(texts=["one\ntwo"])
    for own in (adaptations.LearnedWord("<new>"), adaptations.LoRA(rank=1, text_encoder=True)):
        with pytest.raises(SdjaxError, match="neither may the text encoders be trained"):
            tuned(TuningRun(adaptation=own, cache_texts=True), networks, model.scheduler_config)
