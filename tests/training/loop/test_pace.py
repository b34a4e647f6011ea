"""The pace of a run, by a clock that the test sets."""

import pytest

from sdjax.chips import CHIPS, chip_of
from sdjax.training.loop import pace


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(pace, "time", found)
    return found


def test_pauses_are_left_out_and_waiting_is_a_share(clock):
    run = pace.Pace(steps=2, images=64, devices=4, utilised=0.25)
    for _ in range(3):
        with run.waiting():
            clock.now += 0.5
        clock.now += 1.5
        run.called()
    with run.paused():
        clock.now += 60
    assert run.figures() == {
        "images_per_second": 32, "images_per_second_per_device": 8, "step_seconds": 1,
        "waiting_for_data": 0.25, "utilisation": 0.125,
    }
    clock.now += 2
    run.called()
    again = run.figures()
    assert again["step_seconds"] == 1 and again["waiting_for_data"] == 0


def test_chips_are_known_by_the_longest_beginning_of_their_kind():
    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e",
             "NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100"}
    for kind, name in kinds.items():
        assert chip_of(kind) is CHIPS[name]
    assert chip_of("cpu") is chip_of("NVIDIA H100 PCIe") is None
