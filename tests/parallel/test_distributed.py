"""Several processes on this machine: they train as one does, and end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.parallel import Distributed, Placement
from sdjax.parallel.distributed import launched
from tests.parallel import worker

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds that a loaded machine may take for what takes ten


@pytest.mark.parametrize(("values", "words"), [
    ({"num_processes": 2}, "go together"),
    ({"patience": -1.0}, "patience must be above 0, got -1"),
    ({"coordinator_address": "host", "num_processes": 2, "process_id": 0}, "must be host:port"),
    ({"coordinator_address": "host:1", "num_processes": 2, "process_id": 2}, "must be in 0 … 1"),
])
def test_what_does_not_describe_a_process_is_refused(values, words):
    with pytest.raises(SdjaxError, match=words):
        Distributed(**values)


@pytest.mark.parametrize(("name", "value", "count"), [
    ("SLURM_STEP_NUM_TASKS", "4", 4), ("OMPI_COMM_WORLD_SIZE", "2", 2), ("PMI_SIZE", "8", 8),
    ("MEGASCALE_NUM_SLICES", "2", 2), ("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2", 2),
])
def test_launchers_say_how_many_processes_there_are(monkeypatch, name, value, count):
    assert launched() == 1
    for nothing in ("host" if "HOST" in name else "1", "WARNING: not found, please set it"):
        monkeypatch.setenv(name, nothing)
        assert launched() == 1
    monkeypatch.setenv(name, value)
    assert launched() == count


class Job:
    """Processes of one training, each with `devices` of the CPU."""

    def __init__(self, folder, count, steps, every, devices=1):
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices),
        }
        self.folder, self.processes = folder, [
            subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.worker",
                 *map(str, (folder, address, count, number, steps, every))],
                env=environment, cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ) for number in range(count)
        ]  # fmt: skip

    def checkpoints(self):
        place = self.folder / "checkpoints"
        names = [path.name for path in place.iterdir()] if place.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def wait_for_a_checkpoint(self):
        deadline = time.monotonic() + PATIENCE
        while not self.checkpoints():
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, [p.communicate() for p in ended]
            time.sleep(0.05)

    def end(self):
        """(exit status, output, errors) of each."""
        try:
            told = [process.communicate(timeout=PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
        return [(process.returncode, *text) for process, text in
                zip(self.processes, told, strict=True)]


def alone(folder, steps):
    """The same training in this process: its kernels."""
    outcome = worker.train(folder, steps, 1000, placement=Placement(fsdp=2))
    assert outcome.finished
    return {name: layer["kernel"] for name, layer in outcome.ema["unet"].items()
            if "kernel" in layer}


def assert_equal(folder, wanted):
    with np.load(folder / "result.npz") as got:
        assert set(got) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-6)


def test_two_processes_train_as_one_and_one_of_them_speaks(tmp_path):
    job = Job(tmp_path / "two", 2, steps=6, every=3)
    wanted = alone(tmp_path / "one", 6)
    (first, spoken, _), (second, silent, _) = job.end()
    assert (first, second) == (0, 0)
    assert_equal(tmp_path / "two", wanted)
    assert job.checkpoints() == [3, 6]
    assert "train 6/6" in spoken and "train" not in silent
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("\n") == 1


def test_sigterm_on_one_ends_all_at_the_same_step_and_one_process_goes_on(tmp_path):
    job = Job(tmp_path, 2, steps=100_000, every=2)
    job.wait_for_a_checkpoint()
    job.processes[1].send_signal(signal.SIGTERM)
    ended = job.end()
    assert [status for status, *_ in ended] == [3, 3], ended
    steps = {Path(tmp_path, f"ended-{number}").read_text() for number in range(2)}
    saved = job.checkpoints()[-1]
    assert steps == {str(saved)}
    assert f"SIGTERM: saved step {saved} of 100000" in ended[0][1]
    assert not worker.train(tmp_path, 100_000, 1000, max_minutes=1e-9).finished
    assert job.checkpoints()[-1] == saved + 1  # on one process with copies


def test_one_that_is_killed_ends_the_other_with_a_line(tmp_path):
    job = Job(tmp_path, 2, steps=100_000, every=2)
    job.wait_for_a_checkpoint()
    job.processes[1].kill()
    killed = time.monotonic()
    (status, _, errors), _ = job.end()
    assert status == 2, errors
    assert time.monotonic() - killed < PATIENCE / 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith("error: process 0 of 2 ends: ")


@pytest.mark.full
def test_four_processes_train_as_one(tmp_path):
    job = Job(tmp_path / "four", 4, steps=6, every=3)
    wanted = alone(tmp_path / "one", 6)
    assert [status for status, *_ in job.end()] == [0] * 4
    assert_equal(tmp_path / "four", wanted)
