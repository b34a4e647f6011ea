"""The loop under a placement: the same run, and checkpoints that go from one to another."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from sdjax.checkpoints import Checkpoints
from sdjax.errors import SdjaxError
from sdjax.parallel import Placement, Sharded
from sdjax.training import ArrayBatches, fit
from tests.parallel.steps import CONFIG, Objective

SHORT = replace(CONFIG, steps=8, log_every=4, checkpoint_every=4, sheet_every=0)


def run(folder, config=SHORT, **options):
    images = np.random.default_rng(1).normal(size=(20, 1, 3, 4)).astype(np.float32)
    batches = ArrayBatches({"image": images}, config.batch_size, 0)
    return fit(Objective(), {}, batches, config, folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("places", [
    (Placement(fsdp=2), Placement()), (Placement(), Placement(tensor=2)),
    (Placement(tensor=2), Placement(fsdp=2)),
])
def test_a_run_goes_on_under_another_placement(tmp_path, whole, places):
    shown = []

    def sheet(ema):
        shown.append(ema)
        return np.zeros((1, 8, 8, 3), np.float32), None

    first, second = places
    stopped = replace(SHORT, max_minutes=1e-9)
    assert not run(tmp_path, stopped, placement=first).finished
    assert (tmp_path / "checkpoints" / "2").is_dir()
    outcome = run(tmp_path, placement=second, sheet=sheet)
    assert outcome.finished and len(shown) == 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), outcome.ema, whole.ema)


def test_the_average_may_lie_in_the_hosts_memory(tmp_path, whole, monkeypatch):
    """Between all updates, with the same result, before and after a stop and as others see it."""
    seen, judged = [], []
    original = Sharded.compile

    def watched(place, body):
        call = original(place, body)

        def watching(state, *others):
            state, metrics = call(state, *others)
            seen.append({leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.ema)})
            assert all(leaf.sharding.memory_kind == "device"
                       for leaf in jax.tree.leaves((state.params, state.opt_state)))
            return state, metrics

        return watching

    def validation(ema, frozen):
        judged.append({leaf.sharding.memory_kind for leaf in jax.tree.leaves(ema)})
        return float(len(judged))

    monkeypatch.setattr(Sharded, "compile", watched)
    config = replace(SHORT, ema_on_host=True, steps_per_call=1)
    given = {"placement": Placement(fsdp=2), "validation": validation}
    assert not run(tmp_path, replace(config, max_minutes=1e-9), **given).finished
    outcome = run(tmp_path, config, **given)
    assert outcome.finished and len(seen) == 8 and judged
    assert all(kinds == {"pinned_host"} for kinds in seen)
    assert all(kinds == {"device"} for kinds in judged)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), outcome.ema, whole.ema)
    with pytest.raises(SdjaxError, match="set placement.fsdp"):
        run(tmp_path / "other", config)
    with pytest.raises(SdjaxError, match="ema_on_host needs a steps_per_call of 1, got 2"):
        replace(config, steps_per_call=2)


def test_arrays_come_back_as_they_are_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    tree = {"to_q": {"kernel": np.arange(32, dtype=np.float32).reshape(4, 8)},
            "step": np.int32(3)}
    cut = Sharded.over(2, 1)
    checkpoints.save(1, cut.put(tree), {})
    checkpoints.save(2, tree, {})
    checkpoints.wait()
    for step in (1, 2):
        plain, _ = checkpoints.restore(step, tree)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(plain))
        for place in (cut, Sharded.over(1, 2)):
            got, _ = checkpoints.restore(step, place.shapes(tree))
            assert got["to_q"]["kernel"].sharding == place.shardings(tree)["to_q"]["kernel"]
            jax.tree.map(np.testing.assert_array_equal, got, tree)
        jax.tree.map(np.testing.assert_array_equal, plain, tree)
    checkpoints.close()
