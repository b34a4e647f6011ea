"""A killed run of each adaptation goes on to the same bits as one that was left alone."""

import shutil

import jax
import numpy as np
import pytest

from sdjax.checkpoints import Checkpoints
from sdjax.data.tags import CaptionConfig
from sdjax.training import OptimizerConfig, TrainState, TuningRun, adaptations, fit, make_optimizer
from sdjax.training.loop import fit as loop
from sdjax.training.objectives.tuning import empty_ids, tuned
from sdjax.training.recipes import streams
from tests.training.small import small_model

TEXTS = ["a <new> red, b, c", "b, <new>, d", "<new>", "a, d, c, <new>"]
VALUES = {
    "full": adaptations.Full(text_encoder=True, text_encoder_learning_rate=1e-3),
    "lora": adaptations.LoRA(rank=2, text_encoder=True, rank_dropout=0.3,
                             up_learning_rate_ratio=4.0),
    "dora": adaptations.LoRA(rank=1, targets=("transformers", "convolutions"), dora=True),
    "word": adaptations.LearnedWord("<new>", initial="a", vectors=2),
    "control": adaptations.ControlNet(dropout=0.3),
    "inpaint": adaptations.Inpaint(),
    "edit": adaptations.InstructPix2Pix(dropout=0.2),
    "motion": adaptations.Motion(heads=2, positions=3),
}


@pytest.fixture(scope="module")
def model():
    return small_model(TEXTS)


QUICK = ("full", "lora", "word", "control", "edit", "motion")
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in VALUES]


@pytest.mark.parametrize("name", MARKED)
def test_a_killed_run_ends_as_one_that_was_left_alone(name, model, tmp_path, monkeypatch):
    run = TuningRun(
        adaptation=VALUES[name], steps=4, batch_size=2, log_every=4, checkpoint_every=2,
        sheet_every=0, keep_checkpoints=9, optimizer=OptimizerConfig(warmup_steps=1),
        captions=CaptionConfig(shuffle=True, tag_dropout=0.3), caption_dropout=0.2,
    )
    objective = tuned(run, adaptations.Networks.of(model), model.scheduler_config)
    networks = objective.networks
    frozen = {**model.params, **empty_ids(networks)}
    random = np.random.default_rng(1)
    shape = (4, 3, 8, 8, 8) if objective.adaptation.of_clips else (4, 8, 8, 8)
    arrays = {"mean": random.normal(size=shape).astype(np.float32),
              "std": np.full(shape, 0.1, np.float32), "caption": np.array(TEXTS)}
    for needed in objective.adaptation.needs:
        arrays[needed] = random.random((4, 16, 16, 3), np.float32)
    made = []
    make_step = loop.make_step

    def once(*given):
        """Both runs share one program."""
        if not made:
            made.append(make_step(*given))
        return made[0]

    monkeypatch.setattr(loop, "make_step", once)

    def train(folder):
        batches = streams.batches(run, networks.tokenizers, [arrays], None)
        return fit(objective, frozen, batches, run, folder)

    whole = train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/4")  # as if it had been killed before
    parts = train(tmp_path / "parts")
    optimizer = make_optimizer(run.optimizer, run.steps, objective.rates)
    like = jax.eval_shape(
        lambda key: TrainState.create(objective.init(key, frozen), optimizer), jax.random.key(0))
    states = []
    for folder in ("whole", "parts"):
        checkpoints = Checkpoints(tmp_path / folder / "checkpoints", read_only=True)
        states.append(checkpoints.restore(4, like)[0])
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, *states)
    jax.tree.map(np.testing.assert_array_equal, parts.ema, whole.ema)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.ema,
                         jax.tree.map(np.asarray, objective.init(jax.random.key(0), frozen)))
    assert max(jax.tree.leaves(moved)) > 0
