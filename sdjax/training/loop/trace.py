"""A trace of a few calls of a run's step, for XProf or TensorBoard's profile page."""

from pathlib import Path

import jax

CALLS = 5
"""That are traced."""


class Trace:
    """The trace of one run, written to `folder` once it has seen CALLS calls; say(line) tells it.

    Calls are counted by `called`, the first of which begins the trace: what came before compiled.
    """

    def __init__(self, folder, say):
        self._folder, self._say = Path(folder), say
        self._left = CALLS
        self._running = False

    def called(self, results):
        """One more call gave these arrays."""
        if self._running:
            self._left -= 1
            if not self._left:
                jax.block_until_ready(results)
                self.close()
        elif self._left:
            jax.block_until_ready(results)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self):
        """Write what has been traced."""
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._left = False, 0
            self._say(f"a trace of the step is in {self._folder}: `tensorboard --logdir "
                      f"{self._folder}` shows it where the package xprof is installed")
