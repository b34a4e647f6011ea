"""Validation: the same draws each time, the best checkpoint kept, and stopping changes nothing."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checkpoints import Checkpoints
from sdjax.training import fit
from sdjax.training.loop.fit import best_weights
from sdjax.training.loop.validation import Validation, spread_timesteps


def test_each_image_at_each_timestep_with_its_own_noise():
    compiled = []

    def losses(params, frozen, batch, keys):
        compiled.append(batch["x"].shape)
        noise = jax.vmap(jax.random.normal)(keys)
        return params * batch["x"].sum((1, 2)) + frozen * batch["t"] + noise

    sets = [{"x": np.arange(6.0).reshape(3, 2, 1)}, {"x": np.ones((2, 1, 1))}]
    times = spread_timesteps(2, 1000)
    np.testing.assert_array_equal(times, [250, 750])
    validation = Validation(losses, sets, times, 4, seed=5)
    key, wanted = jax.random.key(5), []
    for place in range(10):
        x = 4 * (place // 2) + 1 if place < 6 else 1
        noise = jax.random.normal(jax.random.fold_in(key, place))
        wanted.append(2 * x + 0.5 * times[place % 2] + noise)
    for _ in range(2):
        found = validation(jnp.float32(2), jnp.float32(0.5))
        np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-6)
    assert len(compiled) == 2  # one for each shape


SCRIPT, asked = [0.5, 0.2, 0.3, 0.4, 0.2, 0.25], []


def scripted(ema, frozen):
    """The script's losses in turn; keeps what it is asked about."""
    asked.append(jax.tree.map(np.array, ema))  # the loop gives its own away
    return SCRIPT[len(asked) - 1]


def run(toy, config, folder, start=0):
    objective, frozen, make_batches = toy
    asked[:] = [None] * start
    return fit(objective, frozen, make_batches(config), config, folder, validation=scripted)


def test_the_best_checkpoint_stays_and_a_killed_run_has_the_same(toy, toy_config, tmp_path):
    config = toy_config(checkpoint_every=2, log_every=2, keep_checkpoints=1)
    run(toy, toy_config(checkpoint_every=2, log_every=2, keep_checkpoints=9), tmp_path / "all")
    at_ten = asked[4]
    whole = run(toy, config, tmp_path / "whole")
    best = best_weights(toy[0], config, tmp_path / "whole")
    assert (best.step, best.loss) == (10, 0.2)  # of equals the newest
    jax.tree.map(np.testing.assert_array_equal, best.ema, at_ten)
    found = Checkpoints(tmp_path / "whole/checkpoints", read_only=True)
    assert found.steps() == [10, 12]
    found.close()

    # As a kill after the checkpoint of step 6 leaves it: that, the best, and further lines.
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "all", parts)
    for step in (2, 8, 10, 12):
        shutil.rmtree(parts / "checkpoints" / str(step))
    assert best_weights(toy[0], config, parts).step == 4
    again = run(toy, config, parts, start=3)
    jax.tree.map(np.testing.assert_array_equal, again.ema, whole.ema)
    assert best_weights(toy[0], config, parts)[:2] == best[:2]
    lines = [
        [{k: v for k, v in json.loads(line).items() if "loss" in k or k == "step"}
         for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "whole", parts)
    ]
    assert lines[0] == lines[1]
    assert [line["validation_loss"] for line in lines[0] if "validation_loss" in line] == SCRIPT


def test_without_validation_there_is_no_best(toy, toy_config, tmp_path):
    config = toy_config()
    objective, frozen, make_batches = toy
    fit(objective, frozen, make_batches(config), config, tmp_path)
    assert best_weights(objective, config, tmp_path) is None
