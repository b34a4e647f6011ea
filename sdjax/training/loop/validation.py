"""What a run is judged by on the way: the loss of a set that is kept out, on the same draws."""

from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax.parallel import COPIES, map_over_devices


class Best(NamedTuple):
    """The checkpoint of the least validation loss: its step, that loss, and its averaged weights.
    """

    step: int
    loss: float
    ema: Any


class Validation:
    """(params, frozen), both on the devices -> float, the mean loss of sets that stay the same.

    losses: (params, frozen, batch, keys [b]) -> float32 [b], the loss of each image. A batch may
      have "t" int32 [b], the timesteps at which it is asked.
    sets: dicts of arrays [N, …], as the losses take them; those of one set are of one shape.
    timesteps: int [K]: each image is asked at each of them, with noise of its own, which depends on
      `seed` and on the places of image and timestep alone.
    place: where params and frozen lie.

    It compiles once for each shape among the sets.
    """

    def __init__(self, losses, sets, timesteps, batch_size, seed, place=COPIES):
        def judged(shared, batch, places):
            key = jax.random.key(seed)
            keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
            return losses(*shared, batch, keys)

        self._program = map_over_devices(judged, 2, place)
        self._sets, self._timesteps = sets, np.asarray(timesteps, np.int32)
        self._batch_size = batch_size

    def __call__(self, params, frozen) -> float:
        found, first = [], 0
        for arrays in self._sets:
            count = len(self._timesteps) * len(jax.tree.leaves(arrays)[0])
            for start in range(0, count, self._batch_size):
                # The last batch is filled up, so that there is one shape.
                places = np.arange(start, start + self._batch_size)
                image, time = divmod(np.minimum(places, count - 1), len(self._timesteps))
                batch = {name: array[image] for name, array in arrays.items()}
                batch["t"] = self._timesteps[time]
                keys = (first + places).astype(np.uint32)
                found.append(self._program((params, frozen), batch, keys)[:count - start])
            first += count
        return float(np.mean(np.concatenate(found), dtype=np.float64))


def spread_timesteps(count: int, length: int) -> np.ndarray:
    """`count` timesteps in the middles of equal parts of 0 … length − 1, int32."""
    return ((np.arange(count) + 0.5) / count * length).astype(np.int32)
