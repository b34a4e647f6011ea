"""The loop: what it writes, and that stopping changes nothing."""

import json
import math
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from sdjax.checkpoints import Checkpoints
from sdjax.chips import CHIPS, Chip
from sdjax.errors import SdjaxError
from sdjax.training import OptimizerConfig, fit
from sdjax.training.loop import fit as loop
from sdjax.training.loop.feed import ArrayBatches, Feed
from sdjax.training.loop.fit import check, kept_weights
from sdjax.training.loop.report import Report


def assert_same(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)


def train(toy, config, folder, **options):
    objective, frozen, make_batches = toy
    return fit(objective, frozen, make_batches(config), config, folder, **options)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [
    {}, {"steps_per_call": 2}, {"accumulation": 2, "batch_size": 4},
    {"optimizer": OptimizerConfig(name="adafactor", warmup_steps=2)},
    {"optimizer": OptimizerConfig(name="schedule_free", schedule="constant", warmup_steps=2)},
])
def test_a_resumed_run_is_bit_for_bit_an_uninterrupted_one(toy, toy_config, tmp_path, changes):
    config = toy_config(**changes)
    whole = train(toy, config, tmp_path / "whole")
    # A schedule depends on the number of steps, so the stop comes from outside, not from `steps`.
    stop_after(toy, config, tmp_path / "parts", 6)
    parts = train(toy, config, tmp_path / "parts")
    assert whole.finished and parts.finished
    assert_same(parts.ema, whole.ema)
    states = [saved_state(tmp_path / name, config, toy) for name in ("whole", "parts")]
    assert_same(*states)
    assert [m["step"] for m in metrics(tmp_path / "parts")] == [4, 8, 12]


def stop_after(toy, config, folder, step):
    """Train until a SIGTERM that comes when the batch of `step` is read ahead."""
    objective, frozen, make_batches = toy
    outcome = fit(objective, frozen, SignalAt(make_batches(config), config, step), config, folder)
    assert not outcome.finished and 0 < outcome.step <= step


class SignalAt:
    """Batches that send this process a SIGTERM when those of a step are drawn."""

    def __init__(self, batches, config, step):
        self.batches, self.left = batches, step * config.accumulation
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.batches)


def saved_state(folder, config, toy):
    from sdjax.training import TrainState, make_optimizer

    optimizer = make_optimizer(config.optimizer, config.steps)
    like = jax.eval_shape(lambda: TrainState.create(toy[0].init(jax.random.key(0)), optimizer))
    checkpoints = Checkpoints(folder / "checkpoints")
    state, notes = checkpoints.restore(checkpoints.latest(), like)
    assert {"about", "data", "seconds"} <= set(notes)
    checkpoints.close()
    return state


def test_a_loader_of_grain_resumes_at_its_exact_batch(toy, toy_config, tmp_path):
    import grain

    items = [{"x": np.float32([i, i % 3, 1]), "y": np.float32([i % 2, i % 5])} for i in range(20)]

    def make_batches(config):
        data = grain.MapDataset.source(items).seed(1).shuffle().repeat()
        return iter(data.to_iter_dataset().batch(config.batch_size))

    toy, config = (*toy[:2], make_batches), toy_config()
    whole = train(toy, config, tmp_path / "whole")
    stop_after(toy, config, tmp_path / "parts", 6)
    assert_same(train(toy, config, tmp_path / "parts").ema, whole.ema)


def test_a_finished_run_is_left_as_it_is(toy, toy_config, tmp_path):
    first = train(toy, toy_config(), tmp_path)
    again = train(toy, toy_config(), tmp_path)
    assert again.finished and again.step == 12
    assert_same(again.ema, first.ema)
    assert len(metrics(tmp_path)) == 3


def test_reports(toy, toy_config, tmp_path, capsys):
    pictures = np.zeros((2, 8, 8, 3), np.float32)
    train(toy, toy_config(sheet_every=6), tmp_path, name="toy",
          sheet=lambda ema: (pictures, ["a", "b"]))
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert set(lines[0]) == {
        "step", "seconds", "images_per_second", "images_per_second_per_device", "step_seconds",
        "waiting_for_data", "loss", "grad_norm", "noise", "learning_rate",
    }
    assert lines[-1]["loss"] < lines[0]["loss"]
    sheets = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert sheets == ["0000006.png", "0000012.png"]
    assert Image.open(tmp_path / "sheets" / sheets[0]).mode == "RGB"
    board = [(e.step, v) for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    tags = [value.tag for _, value in board]
    assert tags.count("loss") == 3 and tags.count("samples") == 2
    # Warm-up of 2 updates, then a cosine over 10 to a hundredth, by hand: update 4 is the second.
    rates = {step: value.simple_value for step, value in board if value.tag == "learning_rate"}
    cosines = {step: math.cos(math.pi * (step - 3) / 10) for step in (4, 8, 12)}
    wanted = {step: 0.05 * (0.01 + 0.99 * (1 + cosine) / 2) for step, cosine in cosines.items()}
    assert rates == pytest.approx(wanted, rel=1e-5)
    printed = capsys.readouterr().out
    assert "toy 12/12  loss" in printed and "images/s" in printed and "min left" in printed
    stages = [line for line in printed.splitlines() if line.startswith("toy: ")]
    assert stages == ["toy: compiling the training step", "toy: compiling and drawing the sheet",
                      "toy: drawing the sheet"]


def test_the_time_left_is_that_of_the_steps_to_come(tmp_path):
    report = Report(tmp_path, "toy", 0, 10)
    task = report._bar.tasks[0]
    shown = [column.render(task).plain for column in report._bar.columns[3:]]
    assert shown == ["loss …  … images/s, … left"]
    report._console._force_terminal = True
    for seconds, left in ((3725.2, "1:02:05"), (0.0, "0:00:00")):
        pace = {"images_per_second": 20.0, "waiting_for_data": 0.0}
        report.metrics(10, {"loss": 0.5}, pace, 100.0, seconds)
        shown = [column.render(task).plain for column in report._bar.columns[3:]]
        assert shown == [f"loss 0.5000  20 images/s, {left} left"]
    report.close()


def test_compiling_does_not_count_in_the_time_left(toy, toy_config, tmp_path, monkeypatch):
    told, update = [], loop.make_step

    def slow_at_first(*given):
        calls, compiled = [], update(*given)

        def call(*arguments):
            time.sleep(0 if calls else 2)
            calls.append(1)
            return compiled(*arguments)

        return call

    monkeypatch.setattr(loop, "make_step", slow_at_first)
    monkeypatch.setattr(
        Report, "metrics", lambda self, step, values, rate, seconds, left: told.append(left)
    )
    train(toy, toy_config(steps=100, checkpoint_every=100), tmp_path)
    assert told[0] < 24  # 2 seconds for 4 steps would make 48, with what compiling takes besides


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_full_disk_is_one_line_and_loses_nothing(toy, toy_config, tmp_path, monkeypatch):
    (tmp_path / "sheets").mkdir()
    (tmp_path / "sheets" / "0000008.png").symlink_to("/dev/full")
    pictures = np.zeros((2, 64, 64, 3), np.float32)
    options = {"sheet": lambda ema: (pictures, None)}
    with pytest.raises(SdjaxError, match="No space left on device; what was saved before stays"):
        train(toy, toy_config(sheet_every=8), tmp_path, **options)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest() == 8
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 8, 1))
        with pytest.raises(SdjaxError, match=r"no room for .* step 12 .* that of step 8 stays"):
            train(toy, toy_config(), tmp_path)
    assert train(toy, toy_config(), tmp_path).finished


def test_what_orbax_cannot_write_is_told_once(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"w": np.zeros(3)}, {})
    checkpoints.wait()

    def full():
        raise ValueError("RESOURCE_EXHAUSTED: no space\nand many lines more")

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
    with pytest.raises(SdjaxError, match="RESOURCE_EXHAUSTED: no space; that of step 1 stays"):
        checkpoints.wait()
    monkeypatch.setattr(checkpoints._manager, "close", full)
    checkpoints.close()


def events(folder):
    """Events of a TensorBoard folder: records of length, checksum, bytes, checksum."""
    for path in folder.iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place:place + 8], "little")
            yield Event.FromString(data[place + 12:place + 12 + length])
            place += 16 + length


def test_metrics_after_the_last_checkpoint_are_dropped(toy, toy_config, tmp_path):
    stop_after(toy, toy_config(log_every=1), tmp_path, 6)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"step": 11, "loss": 0.0}) + '\n{"step": 12, "lo')
    train(toy, toy_config(log_every=1), tmp_path)
    assert [m["step"] for m in metrics(tmp_path)] == list(range(1, 13))
    assert all(m["loss"] > 0 for m in metrics(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run(toy, toy_config, tmp_path):
    objective, frozen, make_batches = toy
    config = toy_config(checkpoint_every=2, log_every=1)
    with pytest.raises(SdjaxError, match="not finite at step 7: the last good checkpoint, step 6"):
        fit(objective, frozen, Poisoned(make_batches(config), 7), config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").latest() == 6
    resumed = train(toy, config, tmp_path)
    assert resumed.finished


class Poisoned:
    """Batches of which number `at` holds NaN."""

    def __init__(self, batches, at):
        self.batches, self.at, self.drawn = batches, at, 0
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.drawn += 1
        batch = next(self.batches)
        return {**batch, "x": batch["x"] * np.nan} if self.drawn == self.at else batch


def test_a_time_limit_saves_and_stops(toy, toy_config, tmp_path, capsys):
    config = toy_config(max_minutes=1e-9)
    outcome = train(toy, config, tmp_path)
    assert not outcome.finished and outcome.step == 1
    assert "saved step 1 of 12; the same command goes on" in capsys.readouterr().out


def test_checkpoints_are_kept_by_number_and_by_interval(toy, toy_config, tmp_path):
    train(toy, toy_config(checkpoint_every=1, keep_checkpoints=2, keep_every=5), tmp_path)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [5, 10, 11, 12]


def test_another_architecture_is_refused(toy, toy_config, tmp_path):
    objective, frozen, make_batches = toy
    train(toy, toy_config(), tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    class Wider(type(objective)):
        def init(self, key, frozen=None):
            layer = super().init(key)["layer.0"]
            return {"layer.0": {**layer, "kernel": jax.numpy.zeros((3, 5))}}

    config = toy_config(steps=20)
    for attempt in (lambda: check(Wider(), config, tmp_path),
                    lambda: fit(Wider(), frozen, make_batches(config), config, tmp_path)):
        with pytest.raises(SdjaxError, match=r"params/layer.0/kernel of float32\[3, 2\], this"):
            attempt()
    with pytest.raises(SdjaxError, match="has opt_state.*nu.*which this configuration lacks"):
        lion = OptimizerConfig(name="lion", warmup_steps=2)
        check(objective, toy_config(steps=20, optimizer=lion), tmp_path)
    with pytest.raises(SdjaxError, match="already at step 12, beyond the 6"):
        check(objective, toy_config(steps=6), tmp_path)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    unfinished = tmp_path / "checkpoints" / "16.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints/12", unfinished)  # as another process has it
    with pytest.raises(SdjaxError, match="this configuration"):
        check(Wider(), config, tmp_path)
    assert [step for step, _, _ in kept_weights(objective, toy_config(), tmp_path)] == [8, 12]
    assert unfinished.exists()
    check(Wider(), config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_changed_settings_are_told(toy, toy_config, tmp_path, capsys):
    stop_after(toy, toy_config(), tmp_path, 6)
    faster = OptimizerConfig(warmup_steps=2, learning_rate=0.1)
    train(toy, toy_config(optimizer=faster), tmp_path)
    assert "changed since: optimizer.learning_rate 0.05 -> 0.1" in capsys.readouterr().out
    train(toy, toy_config(), tmp_path)
    finished = f"{tmp_path} is finished and used as it is:\nchanged since: optimizer.learning_rate"
    assert finished in capsys.readouterr().out


def test_an_unwritable_folder_is_one_clear_line(toy, toy_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SdjaxError, match="cannot write checkpoints to"):
        train(toy, toy_config(), tmp_path / "file")


def test_every_epoch_visits_each_item_once():
    batches = ArrayBatches({"i": np.arange(10)}, 4, seed=3)
    seen = np.concatenate([next(batches)["i"] for _ in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    again = ArrayBatches({"i": np.arange(10)}, 4, seed=3)
    again.set_state({"drawn": 8})
    np.testing.assert_array_equal(next(again)["i"], seen[8:12])


def test_lessons_are_drawn_in_order_and_resume_at_any_position():
    arrays = {"i": np.arange(10)}
    lessons = [([1, 3, 8], 7), (range(10), 2), ([5], 6)]
    batches, states, seen = ArrayBatches(arrays, 4, 3, lessons=lessons), [], []
    for _ in range(9):
        states.append(batches.get_state())
        seen.append(next(batches))
    numbers, flat = (np.concatenate([batch[name] for batch in seen]) for name in ("lesson", "i"))
    np.testing.assert_array_equal(numbers, np.repeat([0, 1, 2, 3], [7, 2, 6, 21]))
    assert sorted(flat[:3]) == sorted(flat[3:6]) == [1, 3, 8] and flat[6] in (1, 3, 8)
    assert (flat[9:15] == 5).all()
    assert sorted(flat[15:25]) == sorted(flat[25:35]) == list(range(10))
    for state, batch in zip(states, seen):
        again = ArrayBatches(arrays, 4, 3, lessons=lessons)
        again.set_state(json.loads(json.dumps(state)))
        drawn = next(again)
        for name in ("i", "lesson"):
            np.testing.assert_array_equal(drawn[name], batch[name])
    plain = next(ArrayBatches(arrays, 10, 3))
    np.testing.assert_array_equal(plain["i"], flat[15:25])
    assert "lesson" not in plain
    with pytest.raises(SdjaxError, match="a lesson has no items"):
        ArrayBatches(arrays, 4, 3, lessons=[([], 7)])


def test_pictures_in_memory_are_mirrored_by_seed_and_position():
    pictures = np.arange(10 * 2 * 3).reshape(10, 1, 2, 3)  # [N, H, W, C], all values different
    arrays = {"image": pictures, "i": np.arange(10)}
    plain, batches = (ArrayBatches(arrays, 4, 3, flip) for flip in (False, True))
    coins = []
    for _ in range(25):
        state, batch, wanted = batches.get_state(), next(batches), next(plain)
        np.testing.assert_array_equal(batch["i"], wanted["i"])
        mirrored = (batch["image"] != wanted["image"]).any((1, 2, 3))
        np.testing.assert_array_equal(batch["image"][mirrored], wanted["image"][mirrored, :, ::-1])
        coins.append(mirrored)
        resumed = ArrayBatches(arrays, 4, 3, flip=True)
        resumed.set_state(state)
        np.testing.assert_array_equal(next(resumed)["image"], batch["image"])
    assert 35 <= np.sum(coins) <= 65  # of 100 fair coins
    np.testing.assert_array_equal(pictures, np.arange(60).reshape(pictures.shape))
    with pytest.raises(SdjaxError, match="flip mirrors the array 'image', there are i"):
        ArrayBatches({"i": np.arange(10)}, 4, 3, flip=True)


def test_positions_do_not_run_ahead_of_the_batches():
    feed = Feed(ArrayBatches({"i": np.arange(10)}, 4, seed=0), (1, 1), ahead=4)
    for k in range(1, 4):
        _, position = next(feed)
        time.sleep(0.01)
        assert position == {"drawn": 4 * k}
    feed.close()
    assert "sdjax-feed" not in [thread.name for thread in threading.enumerate()]


def test_an_error_of_the_data_reaches_the_training(toy, toy_config, tmp_path):
    class Broken:
        get_state = staticmethod(dict)

        def __next__(self):
            raise SdjaxError("picture 7 is broken")

    with pytest.raises(SdjaxError, match="picture 7 is broken"):
        fit(toy[0], toy[1], Broken(), toy_config(), tmp_path)


def test_the_pace_and_the_share_of_the_chip_are_told(toy, toy_config, tmp_path, monkeypatch, capsys):
    kind = jax.local_devices()[0].device_kind
    chip = Chip(flops=1e6, memory=1, bandwidth=1, links=1, kinds=(kind,))
    monkeypatch.setitem(CHIPS, "here", chip)
    config = toy_config(steps=12, log_every=4, steps_per_call=2, accumulation=2, batch_size=4)
    train(toy, config, tmp_path)
    for line in metrics(tmp_path):
        rate = line["images_per_second"]
        assert rate == pytest.approx(8 / line["step_seconds"], rel=1e-3)
        assert line["images_per_second_per_device"] == pytest.approx(
            rate / jax.device_count(), rel=1e-3)
        assert 0 <= line["waiting_for_data"] <= 1
        # One update: the product of [4, 3] and [3, 2] twice, its gradient by the kernel, and so on.
        flops = line["utilisation"] * line["step_seconds"] * chip.flops
        assert 2 * 2 * (2 * 4 * 3 * 2) / jax.device_count() < flops < 5000
    assert "of the chip" in capsys.readouterr().out


def test_a_profile_is_a_trace_of_a_few_calls(toy, toy_config, tmp_path, capsys):
    train(toy, toy_config(profile=True, steps=4), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert f"a trace of the step is in {tmp_path / 'profile'}" in capsys.readouterr().out


def test_a_checkpoint_cut_short_is_one_line(toy, toy_config, tmp_path):
    objective, frozen, make = toy
    config = toy_config(steps=4, checkpoint_every=4)
    fit(objective, frozen, make(config), config, tmp_path)
    for path in (tmp_path / "checkpoints" / "4" / "arrays").rglob("*"):
        if path.is_file() and path.stat().st_size > 64:
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    config = toy_config(steps=8, checkpoint_every=4)
    with pytest.raises(SdjaxError, match="step 4 in .* is damaged.*goes on from the beginning"):
        fit(objective, frozen, make(config), config, tmp_path)
