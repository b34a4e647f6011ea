"""Runs ended from outside: SIGTERM and SIGKILL, on one and two devices."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("interrupted.py")
ROOT = Path(__file__).parents[3]


def start(folder, steps=60, devices=1, checkpoint_every=20, busy=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_NUM_CPU_DEVICES")
    arguments = [folder, steps, devices, checkpoint_every, busy]
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def result(folder):
    with np.load(folder / "result.npz") as arrays:
        return dict(arrays)


def steps_of(folder):
    """Steps of the whole checkpoints; a part of one has another name."""
    if not (folder / "checkpoints").exists():
        return []
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def wait_for_a_step_beyond(step, folder, process):
    deadline = time.monotonic() + 300
    while not (steps_of(folder) or [0])[-1] > step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


def assert_same(got, wanted):
    assert set(got) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])


@pytest.mark.parametrize("devices", [1, 2])
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, devices):
    whole = start(tmp_path / "whole", 4000, devices, 2000)
    process = start(tmp_path / "parts", 4000, devices, 50)
    wait_for_a_step_beyond(0, tmp_path / "parts", process)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    saved = steps_of(tmp_path / "parts")[-1]
    assert f"SIGTERM: saved step {saved} of 4000; the same command goes on" in output
    assert 0 < saved < 4000
    assert f"going on after step {saved}" in finish(start(tmp_path / "parts", 4000, devices, 2000))
    finish(whole)
    assert_same(result(tmp_path / "parts"), result(tmp_path / "whole"))


def test_sigkill_loses_no_more_than_the_steps_since_the_last_checkpoint(tmp_path):
    whole = start(tmp_path / "whole", 400, checkpoint_every=400)
    reached = 0
    for delay in (0.0, 0.013, 0.05):
        # With a checkpoint a step, a kill nearly always falls into the writing of one.
        process = start(tmp_path / "parts", 400, checkpoint_every=1)
        wait_for_a_step_beyond(reached, tmp_path / "parts", process)
        time.sleep(delay)
        process.kill()
        process.wait()
        reached = steps_of(tmp_path / "parts")[-1]
        assert reached < 400
    output = finish(start(tmp_path / "parts", 400, checkpoint_every=100))
    assert f"going on after step {reached}" in output
    finish(whole)
    assert_same(result(tmp_path / "parts"), result(tmp_path / "whole"))


@pytest.mark.parametrize(("busy", "line", "saved"), [
    ("step", "compiling the training step", []), ("sheet", "compiling and drawing the sheet", [3]),
])
def test_sigterm_is_answered_within_ten_seconds_whatever_goes_on(tmp_path, busy, line, saved):
    process, told = start(tmp_path, 4000, checkpoint_every=2000, busy=busy), []
    while not told or line not in told[-1]:
        told.append(process.stdout.readline())
        assert told[-1], told
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    since = time.monotonic()
    output, _ = process.communicate(timeout=300)
    assert time.monotonic() - since < 10
    assert process.returncode == 3 and "SIGTERM: ended in the middle" in output, output
    assert steps_of(tmp_path) == saved
