"""The step: devices, accumulation, several steps a call, EMA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from sdjax.errors import SdjaxError
from sdjax.parallel import (
    largest_divisor,
    map_over_devices,
    replicate,
    shard_batch,
)
from sdjax.training import OptimizerConfig, TrainState, make_optimizer, make_step
from sdjax.training.loop.state import ema_update
from sdjax.training.loop.step import image_keys


def run(toy, config, calls):
    objective, frozen, make_batches = toy
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = replicate(TrainState.create(objective.init(jax.random.key(0)), optimizer))
    step = make_step(objective.loss, optimizer, config)
    batches = make_batches(config)
    metrics = []
    for _ in range(calls):
        drawn = [next(batches) for _ in range(config.steps_per_call * config.accumulation)]
        batch = jax.tree.map(lambda *x: np.concatenate(x), *drawn)
        batch = shard_batch(batch, (config.steps_per_call, config.accumulation))
        state, values = step(state, replicate(frozen), batch)
        metrics.append(jax.tree.map(np.asarray, values))
    return jax.tree.map(np.asarray, state), metrics


def reference(toy, config, updates):
    """The same training in a few lines on whole batches, without pmap."""
    objective, frozen, make_batches = toy
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = TrainState.create(objective.init(jax.random.key(0)), optimizer)
    params, opt_state, ema, batches = state.params, state.opt_state, state.ema, make_batches(config)
    for step in range(updates):
        keys = image_keys(config.seed, step, 0, config.batch_size)
        gradient = jax.grad(lambda p: objective.loss(p, frozen, next(batches), keys)[0])(params)
        change, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, change)
        ema = ema_update(ema, params, jnp.int32(step), config.ema_decay)
    return params, ema


def assert_close(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, wanted)


def test_the_averages_of_schedule_free_training_are_what_is_used(toy, toy_config):
    optimizer = OptimizerConfig("schedule_free", 0.05, "constant", warmup_steps=1, clip_norm=0)
    state, _ = run(toy, toy_config(optimizer=optimizer, ema_decay=0.0), 3)
    used = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
                 state.ema, used)
    assert max(jax.tree.leaves(jax.tree.map(
        lambda a, b: np.abs(a - b).max(), state.params, state.ema))) > 1e-4


def test_two_devices_train_as_one_batch(toy, toy_config):
    config = toy_config()
    assert jax.local_device_count() == 2
    state, metrics = run(toy, config, 6)
    params, ema = reference(toy, config, 6)
    assert_close(state.params, params)
    assert_close(state.ema, ema)
    assert state.step == 6
    assert set(metrics[0]) == {"loss", "grad_norm", "noise"}
    assert metrics[0]["loss"].shape == (1,)


def test_steps_in_one_call_are_the_same_steps(toy, toy_config):
    apart, _ = run(toy, toy_config(), 6)
    together, metrics = run(toy, toy_config(steps_per_call=3), 2)
    assert_close(together, apart)
    assert metrics[0]["loss"].shape == (3,)


def test_accumulation_is_a_larger_batch(toy, toy_config):
    whole, _ = run(toy, toy_config(batch_size=8), 4)
    parts, _ = run(toy, toy_config(batch_size=4, accumulation=2), 4)
    assert_close(parts, whole)


def test_keys_belong_to_images_not_to_the_split():
    whole = jax.random.key_data(image_keys(3, 5, 0, 8))
    half = jax.random.key_data(image_keys(3, 5, 4, 4))
    np.testing.assert_array_equal(whole[4:], half)
    assert len(np.unique(whole, axis=0)) == 8
    assert not np.array_equal(whole, jax.random.key_data(image_keys(3, 6, 0, 8)))
    assert not np.array_equal(whole, jax.random.key_data(image_keys(4, 5, 0, 8)))


def test_ema_starts_quickly_and_ends_at_its_decay():
    ema, params = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    assert ema_update(ema, params, jnp.int32(0), 0.99)["w"] == pytest.approx(0.9)
    assert ema_update(ema, params, jnp.int32(89), 0.99)["w"] == pytest.approx(1 - 90 / 99)
    assert ema_update(ema, params, jnp.int32(10**6), 0.99)["w"] == pytest.approx(0.01, rel=1e-4)


def test_state_is_donated(toy, toy_config):
    objective, frozen, make_batches = toy
    config = toy_config()
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = replicate(TrainState.create(objective.init(jax.random.key(0)), optimizer))
    step = make_step(objective.loss, optimizer, config)
    step(state, replicate(frozen), shard_batch(next(make_batches(config)), (1, 1)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_replicated_tree_shares_no_memory():
    host = np.zeros(4, np.float32)
    placed = replicate({"a": host, "b": host})
    host[:] = 1
    assert not np.asarray(placed["a"]).any()
    jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)(placed)


def test_uneven_batches_are_refused():
    with pytest.raises(SdjaxError, match="batch of 7 cannot be split over 2 devices"):
        shard_batch({"x": np.zeros((7, 2))}, (1, 1))


@pytest.mark.parametrize(("cores", "sizes", "devices"), [
    (2, [8, 64], 2), (3, [16], 2), (6, [8, 64], 4), (12, [16, 32], 8), (16, [8, 64], 8),
    (4, [7], 1), (5, [], 5),
])
def test_as_many_devices_as_divide_the_batches(cores, sizes, devices):
    assert largest_divisor(cores, sizes) == devices


def test_batches_keep_their_order_on_the_way_to_the_devices():
    x = np.arange(2 * 3 * 2 * 2)
    sharded = shard_batch(x, (2, 3))
    assert sharded.shape == (2, 2, 3, 2)
    first_step_first_part = np.concatenate([sharded[0, 0, 0], sharded[1, 0, 0]])
    np.testing.assert_array_equal(first_step_first_part, [0, 1, 2, 3])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_items_are_mapped_over_devices(count):
    program = map_over_devices(lambda shared, a, b: {"sum": shared + a + b}, items=2)
    a = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    out = program(np.float32(1), a, 2 * a)
    np.testing.assert_array_equal(out["sum"], 1 + 3 * a)


def test_optimizers_step_against_the_gradient(toy, toy_config):
    for name in ("adamw", "adafactor", "lion"):
        optimizer = dataclasses.replace(toy_config().optimizer, name=name)
        _, metrics = run(toy, toy_config(steps=60, optimizer=optimizer, steps_per_call=30), 2)
        assert metrics[-1]["loss"][-5:].mean() < 0.5 * metrics[0]["loss"][:5].mean(), name


def test_a_loss_is_given_of_the_state_what_it_asks_for(toy, toy_config):
    class Looking:
        """The loss is the step; the average is told."""

        def loss(self, params, frozen, batch, keys):
            kernel = params["layer.0"]["kernel"]
            told = frozen["ema"]["layer.0"]["kernel"].sum()
            return frozen["step"] + 0 * kernel.sum(), {"told": told, "scale": frozen["scale"]}

    def begin(state):
        """Every second update begins with an average of ones."""
        ones = jax.tree.map(jnp.ones_like, state.ema)
        return state.replace(ema=jax.lax.cond(
            state.step % 2 == 1, lambda: ones, lambda: state.ema))

    objective, frozen, make_batches = toy
    config = toy_config(steps_per_call=4, optimizer=OptimizerConfig(
        learning_rate=1e-9, warmup_steps=0))
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = TrainState.create(objective.init(jax.random.key(0)), optimizer)
    kernel = float(state.params["layer.0"]["kernel"].sum())
    step = make_step(
        Looking().loss, optimizer, config, given=("ema", "step"), begin=begin)
    batches = make_batches(config)
    batch = jax.tree.map(lambda *x: np.concatenate(x), *[next(batches) for _ in range(4)])
    _, metrics = step(replicate(state), replicate(frozen), shard_batch(batch, (4, 1)))
    np.testing.assert_array_equal(metrics["loss"], [0, 1, 2, 3])
    assert metrics["told"][0] == pytest.approx(kernel)
    np.testing.assert_array_equal(metrics["told"][1::2], [6, 6])
    assert (metrics["scale"] == frozen["scale"]).all()
