"""A problem small enough to train in milliseconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.training import ArrayBatches, OptimizerConfig, RunConfig
from sdjax.training.loop import signals


@pytest.fixture(autouse=True)
def no_end_in_the_middle(monkeypatch):
    """A signal in the tests' own process waits for a loaded machine."""
    monkeypatch.setattr(signals, "GRACE", 3600.0)


class Toy:
    """Linear regression with noise from the images' keys, so that wrong randomness shows."""

    def init(self, key, frozen=None):
        return {"layer.0": {"kernel": jax.random.normal(key, (3, 2)), "bias": jnp.zeros(2)}}

    def loss(self, params, frozen, batch, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
        layer = params["layer.0"]
        error = batch["x"] @ layer["kernel"] + layer["bias"] - batch["y"] + frozen["scale"] * noise
        return jnp.mean(error**2), {"noise": jnp.mean(noise)}


@pytest.fixture
def toy():
    """(objective, frozen, make_batches(config))."""
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 3)).astype(np.float32)
    arrays = {"x": x, "y": x[:, :2] * 2}
    frozen = {"scale": np.float32(0.1)}
    return Toy(), frozen, lambda c: ArrayBatches(arrays, c.batch_size, c.seed)


@pytest.fixture
def toy_config():
    """RunConfig of a short run, changed by keywords."""
    def make(**changes):
        optimizer = changes.pop("optimizer", OptimizerConfig(warmup_steps=2, learning_rate=0.05))
        values = {"steps": 12, "batch_size": 8, "log_every": 4, "checkpoint_every": 4,
                  "sheet_every": 0, "optimizer": optimizer, **changes}
        return RunConfig(**values)
    return make
