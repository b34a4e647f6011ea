"""Ten steps of a small network under several placements: FILE.npz NAME…

The network is a few products under diffusers' names: a U-Net would take the compiler far longer.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax import parallel
from sdjax.parallel import COPIES, Sharded
from sdjax.training import OptimizerConfig, RunConfig, TrainState, make_optimizer, make_step

CONFIG = RunConfig(
    steps=20, batch_size=8, steps_per_call=2,
    optimizer=OptimizerConfig(warmup_steps=2, learning_rate=1e-3),
)
SHAPES = {"conv1": (1, 3, 4, 8), "to_q": (8, 16), "to_out.0": (16, 4)}
PLACES = {
    "one": lambda: Sharded.over(1, 1, jax.devices()[:1]),
    "copies": lambda: COPIES,
    "data": lambda: Sharded.over(1, 1),
    "fsdp": lambda: Sharded.over(4, 1),
    "data x tensor": lambda: Sharded.over(1, 2),
    "data x fsdp": lambda: Sharded.over(2, 1),
    "fsdp x tensor": lambda: Sharded.over(2, 2),
}


class Objective:
    """Noise told from a noised picture."""

    def init(self, key=None, frozen=None):
        """Drawn by NumPy, which compiles nothing."""
        random = np.random.default_rng(0)

        kernels = {
            name: {"kernel": random.normal(0, 0.3, shape).astype(np.float32)}
            for name, shape in SHAPES.items()
        }
        return {"unet": {**kernels, "norm": {"scale": np.ones(4, np.float32)}}}

    def loss(self, params, frozen, batch, keys):
        kernels = {name: layer.get("kernel") for name, layer in params["unet"].items()}
        noise = jax.vmap(jax.random.normal)(keys)[:, None, None, None]
        x = (batch["image"] + noise) * params["unet"]["norm"]["scale"]
        x = jax.lax.conv_general_dilated(
            x, kernels["conv1"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jnp.tanh(x) @ kernels["to_q"]
        return jnp.mean((jnp.tanh(x) @ kernels["to_out.0"] - noise) ** 2), {}


def prepared(place, config=CONFIG):
    """(state, compiled step, batch of a call)."""
    objective, optimizer = Objective(), make_optimizer(config.optimizer, config.steps)
    state = place.own(TrainState.create(objective.init(), optimizer))
    step = make_step(objective.loss, optimizer, config, place)
    count = config.steps_per_call * config.batch_size
    images = np.random.default_rng(1).normal(size=(count, 1, 3, 4)).astype(np.float32)
    return state, step, place.batch({"image": images}, (config.steps_per_call, 1))


def held(tree):
    """Bytes of a tree on its first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def main(path, *names):
    """Writes the parameters, and prints the bytes on the first device, of each placement."""
    parallel.use_cpu_devices(4)
    arrays, sizes = {}, {}
    for name in ("one", *names):
        place = PLACES[name]()
        state, step, batch = prepared(place)
        if name == "one":
            arrays |= flatten_dict({"begin": place.gathered(state.params)}, sep="/")
        for _ in range(5):
            state, _ = jax.block_until_ready(step(state, {}, batch))
        arrays |= flatten_dict({name: place.gathered(state.params)}, sep="/")
        sizes[name] = {part: held(getattr(state, part)) for part in ("params", "opt_state", "ema")}
    np.savez(path, **arrays)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main(*sys.argv[1:])
