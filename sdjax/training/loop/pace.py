"""How fast a run goes, without its pauses."""

import contextlib
import time


class Pace:
    """Counts the calls of a step since the last figures.

    steps, images: that one call makes, and trains on, on all devices.
    devices: chips of the whole job.
    utilised: FLOPs of a call on one device over what the device could do in a second; None where
      either is not known.
    """

    def __init__(self, steps, images, devices, utilised=None):
        self._steps, self._images, self._devices = steps, images, devices
        self.utilised = utilised
        self.restart()

    def restart(self):
        """Forget what was counted."""
        self._since, self._calls, self._waited = time.monotonic(), 0, 0.0

    def called(self):
        """One more call is done."""
        self._calls += 1

    @contextlib.contextmanager
    def paused(self):
        """What is done here is no part of the training."""
        begun = time.monotonic()
        yield
        self._since += time.monotonic() - begun

    @contextlib.contextmanager
    def waiting(self):
        """What is done here is waiting for data."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def figures(self) -> dict[str, float]:
        """The figures since the last ones, and a fresh start.

        `waiting_for_data` is a share of the time. `utilisation` is the FLOPs of the step as it is
        written over what the devices could do meanwhile in bfloat16; what `remat` computes twice
        counts twice.
        """
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = self._calls * self._images / seconds
        found = {
            "images_per_second": rate,
            "images_per_second_per_device": rate / self._devices,
            "step_seconds": seconds / max(self._calls * self._steps, 1),
            "waiting_for_data": min(self._waited / seconds, 1.0),
        }
        if self.utilised is not None:
            found["utilisation"] = self.utilised * self._calls / seconds
        self.restart()
        return found
