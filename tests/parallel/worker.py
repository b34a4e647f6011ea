"""One process of a job: FOLDER ADDRESS COUNT NUMBER STEPS EVERY."""

import sys
from pathlib import Path

import jax
import numpy as np

from sdjax import parallel
from sdjax.training import ArrayBatches, OptimizerConfig, RunConfig, fit
from tests.parallel.steps import Objective


class Share:
    """Those rows of each batch that this process needs, as a loader reads them."""

    def __init__(self, batches, rows, batch_size):
        assert len(rows) < batch_size
        self._batches, self.rows, self.batch_size = batches, rows, batch_size
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        return {name: array[self.rows] for name, array in next(self._batches).items()}


def train(folder, steps, every, placement=parallel.Placement(), max_minutes=0.0):
    """The training of the small network of `steps`."""
    config = RunConfig(
        steps=int(steps), batch_size=8, log_every=int(steps), checkpoint_every=int(every),
        sheet_every=0, max_minutes=max_minutes,
        optimizer=OptimizerConfig(warmup_steps=1, learning_rate=1e-3),
    )
    images = np.random.default_rng(1).normal(size=(20, 1, 3, 4)).astype(np.float32)
    batches = ArrayBatches({"image": images}, 8, 0)
    if jax.process_count() > 1:
        batches = Share(batches, placement.laid_out().rows(8), 8)
    return fit(Objective(), {}, batches, config, folder, placement=placement)


def main(folder, address, count, number, steps, every):
    """Trains, and writes down what it ends with."""
    where = parallel.Distributed(address, int(count), int(number), patience=45.0)
    with parallel.together(where):
        outcome = train(folder, steps, every, parallel.Placement(fsdp=2))
        if outcome.finished and parallel.leader():
            np.savez(Path(folder) / "result.npz", **{
                name: layer["kernel"] for name, layer in outcome.ema["unet"].items()
                if "kernel" in layer
            })
        Path(folder, f"ended-{number}").write_text(str(outcome.step))
    sys.exit(0 if outcome.finished else 3)


if __name__ == "__main__":
    main(*sys.argv[1:])
