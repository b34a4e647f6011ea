"""What is made once for a request, on the host: an item for each device at a time."""

import jax
import numpy as np

from sdjax import parallel


def one_a_device(run, items, on=parallel.COPIES):
    """`run` on a tree of arrays [n, …], one of each for each device of `on` at a time.

    Gives NumPy trees [n, …]. One program for any n.
    """
    devices, count, made = on.groups, len(jax.tree.leaves(items)[0]), []
    for first in range(0, count, devices):
        numbers = np.minimum(np.arange(first, first + devices), count - 1)
        done = run(jax.tree.map(lambda leaf: leaf[numbers][:, None], items))
        made.append(jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], done))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *made)
