"""Schedules and what the optimizers are told."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.errors import SdjaxError
from sdjax.training import OptimizerConfig, make_optimizer
from sdjax.training.loop.optimizers import decayed, learning_rate


def test_warm_up_then_cosine():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rate = learning_rate(config, 110)
    values = np.array([rate(i) for i in range(111)])
    assert values[0] == pytest.approx(1 / 11)
    assert values[10] == pytest.approx(1)
    assert values[60] == pytest.approx(0.55, abs=1e-6)
    assert values[110] == pytest.approx(0.1)
    assert (np.diff(values[:11]) > 0).all() and (np.diff(values[10:]) < 0).all()


@pytest.mark.parametrize(("schedule", "middle", "end"), [("constant", 1, 1), ("linear", 0.5, 0)])
def test_other_schedules(schedule, middle, end):
    config = OptimizerConfig(
        learning_rate=1.0, schedule=schedule, warmup_steps=0, final_fraction=0.0
    )
    rate = learning_rate(config, 100)
    assert rate(0) == 1
    assert rate(50) == pytest.approx(middle)
    assert rate(100) == pytest.approx(end)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(SdjaxError, match="warmup_steps must be below steps"):
        make_optimizer(OptimizerConfig(warmup_steps=10), 10)


def test_clipping_bounds_the_global_norm():
    config = OptimizerConfig(
        name="lion", learning_rate=1.0, warmup_steps=0, weight_decay=0, clip_norm=0.5
    )
    optimizer = make_optimizer(config, 10)
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    gradient = {"a": jnp.full(3, 30.0), "b": jnp.full((2, 2), 40.0)}
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    momentum = optax.tree_utils.tree_get(state, "mu")
    # Lion's first momentum is (1 - beta_2) times the gradient it saw.
    assert optax.tree.norm(momentum) == pytest.approx(0.5 * (1 - config.beta_2), rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_decay_spares_biases_and_norms(name):
    config = OptimizerConfig(
        name=name, learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5,
        clip_norm=0,
    )
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    zeros = {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}
    change, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(change["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(change["bias"], 0)
    assert decayed(params) == {"kernel": True, "bias": False}
