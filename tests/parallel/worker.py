"""One process of a job: FOLDER ADDRESS COUNT NUMBER STEPS EVERY."""

import sys
from pathlib import Path

import numpy as np

from sdjax import parallel
from sdjax.training import ArrayBatches, OptimizerConfig, RunConfig, fit
from tests.parallel.steps import Objective


def train(folder, steps, every, placement=parallel.Placement(), max_minutes=0.0):
    """The training of the small network of `steps`."""
    config = RunConfig(
        steps=int(steps), batch_size=8, log_every=int(steps), checkpoint_every=int(every),
        sheet_every=0, max_minutes=max_minutes,
        optimizer=OptimizerConfig(warmup_steps=1, learning_rate=1e-3),
    )
    images = np.random.default_rng(1).normal(size=(20, 1, 3, 4)).astype(np.float32)
    batches = ArrayBatches({"image": images}, 8, 0)
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
