"""A run in a process of its own, for tests that end it: folder, steps, devices, checkpoint_every,
and perhaps what keeps it busy for a minute: "step", the first one, or "sheet".
"""

import sys
import time

import numpy as np


def main(folder, steps, devices, checkpoint_every, busy=""):
    from sdjax import parallel

    parallel.use_cpu_devices(int(devices))
    import jax
    import jax.numpy as jnp

    from sdjax.training import ArrayBatches, OptimizerConfig, RunConfig, fit

    assert jax.local_device_count() == int(devices)

    class Objective:
        def init(self, key, frozen=None):
            return {"kernel": jax.random.normal(key, (8, 8)), "bias": jnp.zeros(8)}

        def loss(self, params, frozen, batch, keys):
            noise = jax.vmap(lambda key: jax.random.normal(key, (8,)))(keys)
            if busy == "step":
                jax.debug.callback(lambda: time.sleep(60))
            out = jnp.tanh(batch["x"] @ params["kernel"] + params["bias"]) - noise
            return jnp.mean(out**2), {}

    config = RunConfig(
        steps=int(steps), batch_size=8, log_every=10, checkpoint_every=int(checkpoint_every),
        sheet_every=3 if busy == "sheet" else 0, optimizer=OptimizerConfig(warmup_steps=2),
    )
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    sheet = (lambda ema: time.sleep(60)) if busy == "sheet" else None
    outcome = fit(Objective(), {}, ArrayBatches({"x": x}, 8, 0), config, folder, sheet=sheet)
    if outcome.finished:
        np.savez(f"{folder}/result.npz", **outcome.ema)


if __name__ == "__main__":
    main(*sys.argv[1:])
