"""Data parallelism by pmap: copies of the parameters, shares of the batch."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.errors import SdjaxError

AXIS = "device"
"""Name of the mapped axis inside every mapped function of the project."""


def replicated():
    """Sharding that puts a whole copy of an array on each local device."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec())


def placed(tree):
    """`tree` as it is where it lies on devices; NumPy arrays with a copy on each local device.

    Whoever keeps parameters on the host has them on the devices for as long as they hold what this
    gives.
    """
    if not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, replicated())


def split():
    """Sharding of arrays [devices, …], as mapped pmap arguments are: to each device its own."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree):
    """`tree` with each array copied to all local devices, as unmapped pmap arguments want it.

    The copies share no memory with `tree`, so the result may be donated.
    """
    # On the CPU device_put may alias its input: two leaves that are one array, or a NumPy array
    # that somebody keeps, would then be donated under their owner.
    return jax.device_put(jax.tree.map(_copy, tree), replicated())


def to_host(tree):
    """`tree` as NumPy arrays of its own, safe to keep after the device arrays are donated."""
    return jax.tree.map(_copy, tree)


def _copy(x):
    return np.array(x, copy=True)


def shard_batch(batch, leading=()):
    """Arrays [N, …] as [devices, *leading, N / (devices · prod(leading)), …], to be mapped over.

    Element order within one step is device-major: device d gets the d-th run of each step's
    images. Raises SdjaxError where N does not divide.
    """
    devices = jax.local_device_count()
    groups = int(np.prod(leading, dtype=int))

    def split(x):
        x = np.asarray(x)
        per_device, rest = divmod(len(x), groups * devices)
        if rest:
            raise SdjaxError(
                f"a batch of {len(x) // groups} cannot be split over {devices} devices: "
                f"choose a batch size that {devices} divides"
            )
        x = x.reshape(*leading, devices, per_device, *x.shape[1:])
        return np.moveaxis(x, len(leading), 0)

    return jax.tree.map(split, batch)


def map_locally(function, in_axes):
    """`function` pmapped over the local devices, each process for itself."""
    devices = None if jax.process_count() == 1 else jax.local_devices()
    return jax.pmap(function, axis_name=AXIS, in_axes=in_axes, devices=devices)
