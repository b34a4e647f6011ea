"""Schedules and what the optimizers are told."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from sdjax.errors import SdjaxError
from sdjax.training import OptimizerConfig, make_optimizer
from sdjax.training.loop.optimizers import decayed, evaluated, learning_rate


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


OLD = "consistent_rms" not in inspect.signature(optax.contrib.muon).parameters
MUON = pytest.param("muon", marks=pytest.mark.skipif(OLD, reason="the oldest optax has less of it"))


@pytest.mark.skipif(not OLD, reason="of the oldest optax")
def test_an_optax_that_is_too_old_for_muon_is_told():
    with pytest.raises(SdjaxError, match="muon needs a newer optax: pip install"):
        make_optimizer(OptimizerConfig(name="muon"), 1_000)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "schedule_free", MUON])
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


def params_and_gradients(count=4):
    random = np.random.default_rng(0)
    shapes = {"a": {"kernel": (3, 4), "bias": (4,)}, "b": {"kernel": (2, 2, 3, 5)}, "c": (2, 3)}

    def draw():
        return jax.tree.map(lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
                            shapes, is_leaf=lambda x: isinstance(x, tuple))

    return draw(), [draw() for _ in range(count)]


def after(optimizer, params, gradients, state=None):
    """Parameters and state after updates, each compiled as in the step."""
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        change, state = update(gradient, state, params)
        params = optax.apply_updates(params, change)
    return params, state


def matrix(leaf):
    return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)


def optaxs(name, rate, mask):
    """What Optax's own documentation has for each."""
    own = optax.contrib
    if name == "adafactor":
        return optax.adafactor(rate, multiply_by_parameter_scale=False, momentum=0.9,
                               weight_decay_rate=0.1 * 0.02, weight_decay_mask=mask)
    if name == "lion":
        return optax.lion(rate, 0.9, 0.99, weight_decay=0.1, mask=mask)
    if name == "prodigy":
        return own.prodigy(rate, (0.9, 0.99), weight_decay=0.1)
    if name == "schedule_free":
        base = optax.adamw(rate, 0.0, 0.99, weight_decay=0.1, mask=mask)
        return own.schedule_free(base, rate, 0.9)
    return own.muon(
        rate, beta=0.9, adam_b1=0.9, adam_b2=0.99, weight_decay=0.1, consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda p: {
            "a": {"kernel": matrix(p["a"]["kernel"]), "bias": None},
            "b": {"kernel": matrix(p["b"]["kernel"])}, "c": None},
    )


NAMES = ["adafactor", "lion", "prodigy", "schedule_free", MUON]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_optaxs_own_and_goes_on_from_a_saved_state(name):
    params, gradients = params_and_gradients()
    if name == "prodigy":  # Optax decays biases too
        params, gradients = ({k: v for k, v in tree.items() if k == "b"}
                             for tree in (params, *gradients)), None
        params, *gradients = params
    config = OptimizerConfig(name, 0.02, "constant", warmup_steps=0, weight_decay=0.1, clip_norm=0)
    ours = make_optimizer(config, 10)
    wanted, wanted_state = after(optaxs(name, optax.constant_schedule(0.02), decayed),
                                 params, gradients)
    found, state = after(ours, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
                 found, wanted)
    half, half_state = after(ours, params, gradients[:2])
    saved = jax.tree.map(np.array, half_state)
    again, _ = after(ours, half, gradients[2:], saved)
    jax.tree.map(np.testing.assert_array_equal, again, found)
    used = evaluated(state, found)
    if name == "schedule_free":
        wanted = optax.contrib.schedule_free_eval_params(wanted_state, wanted)
        assert abs(used["c"] - found["c"]).max() > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 used, wanted)


def test_schedule_free_is_the_mean_of_its_steps_whatever_the_rates():
    """With equal weights x is the plain mean of z, arXiv 2405.15682, equations 3 to 5."""
    params, gradients = params_and_gradients()
    config = OptimizerConfig("schedule_free", 0.1, "constant", warmup_steps=0, weight_decay=0,
                             clip_norm=0)
    rates = lambda p: jax.tree.map(lambda x: 3.0 if x.ndim == 2 else 1.0, p)  # noqa: E731
    optimizer = make_optimizer(config, 10, rates)
    state, y, seen = optimizer.init(params), params, []
    for gradient in gradients:
        y, state = after(optimizer, y, [gradient], state)
        seen.append(state.z)
    mean = jax.tree.map(lambda *z: sum(z) / len(z), *seen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                 evaluated(state, y), mean)


def test_parts_of_the_tree_have_optimizers_of_their_own():
    params, gradients = params_and_gradients()
    main = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=0.1)
    own = OptimizerConfig("schedule_free", 0.3, "constant", warmup_steps=0, clip_norm=0.2)
    found, state = after(make_optimizer(main, 10, parts={"b": own}), params, gradients)
    used = evaluated(state, found)
    for config, keys in ((main, "ac"), (own, "b")):
        alone = [{k: tree[k] for k in keys} for tree in (params, *gradients)]
        wanted, its = after(make_optimizer(config, 10), alone[0], alone[1:])
        for key in keys:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
                         (found[key], used[key]), (wanted[key], evaluated(its, wanted)[key]))


@pytest.mark.parametrize(("options", "message"), [
    ({"name": "schedule_free"}, "wants the schedule constant"),
    ({"name": "prodigy"}, "a factor of it, usually 1"),
])
def test_settings_that_an_optimizer_cannot_have_are_told(options, message):
    with pytest.raises(SdjaxError, match=message):
        OptimizerConfig(**options)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor"])
def test_the_momentum_takes_half_in_bfloat16_and_leads_the_same_way(name):
    if name == "muon" and "consistent_rms" not in inspect.signature(optax.contrib.muon).parameters:
        pytest.skip("the oldest optax has another Muon")
    params = {"kernel": jnp.ones((8, 4))}
    changes, sizes = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(name=name, warmup_steps=0, momentum_dtype=dtype)
        optimizer = make_optimizer(config, 100)
        state, gradient = optimizer.init(params), {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
        for _ in range(3):
            changes[dtype], state = optimizer.update(gradient, state, params)
        sizes[dtype] = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert sizes["float32"] - sizes["bfloat16"] == 2 * 32
    exact, near = (changes[dtype]["kernel"] for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(near, exact, rtol=0.02, atol=0.02 * np.abs(exact).max())


def test_a_momentum_in_bfloat16_is_refused_where_there_is_none():
    with pytest.raises(SdjaxError, match="momentum_dtype bfloat16 is for adamw"):
        OptimizerConfig(name="prodigy", learning_rate=1.0, momentum_dtype="bfloat16")
