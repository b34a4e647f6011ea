"""Devices: one XLA CPU device a core, the compile cache, and data parallelism by pmap.

Nothing here runs on import; a program that wants CPU devices or the cache asks for them before
its first computation.
"""

import os
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .errors import SdjaxError

AXIS = "device"
"""Name of the mapped axis inside every pmapped function of the project."""

THREADS_PER_DEVICE = 2

_PROCESSES = {
    "SLURM_STEP_NUM_TASKS": "number",  # of srun; in a batch script itself it is absent or 1
    "OMPI_COMM_WORLD_SIZE": "number",  # Open MPI
    "PMI_SIZE": "number",  # MPICH and Intel MPI
    "MEGASCALE_NUM_SLICES": "number",  # slices of TPUs
    "TPU_WORKER_HOSTNAMES": "names",  # a TPU pod
}
"""What launchers tell their processes of how many there are."""


def use_cpu_devices(count=None, batch_sizes=()):
    """Make XLA show the CPU as `count` devices, so that pmap uses them all.

    When None, one a core, or as many of the cores as divide each of `batch_sizes` evenly. No effect
    then where the environment variable JAX_NUM_CPU_DEVICES has already chosen. Raises SdjaxError
    when JAX has already started with another number, which cannot be changed any more.
    """
    if count is None:
        if "JAX_NUM_CPU_DEVICES" in os.environ:
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        count = largest_divisor(cores, batch_sizes)
    if count < 1:
        raise SdjaxError(f"at least one CPU device is needed, got {count}")
    if jax.config.jax_num_cpu_devices == count:
        return
    # XLA's threads wait inside an all-reduce. With as few threads as devices, what a device waits
    # for can be queued behind itself.
    os.environ.setdefault("NPROC", str(THREADS_PER_DEVICE * count))
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise SdjaxError(
            f"JAX already runs, so it cannot be given {count} CPU devices: "
            "call use_cpu_devices before the first computation"
        ) from error


def check_one_process():
    """SdjaxError where this is one of several processes of a job, which training does not support.

    A launcher's variables are looked at first: started by it without jax.distributed, each process
    would take itself for the only one. Then JAX is asked, which starts it.
    """
    for name, kind in _PROCESSES.items():
        value = os.environ.get(name, "")
        count = len(value.split(",")) if kind == "names" else int(value) if value.isdigit() else 1
        if count > 1:
            raise _several(count, f", or, where each trains on its own, unset {name}={value}")
    if jax.process_count() > 1:
        raise _several(jax.process_count())


def _several(count, way_out=""):
    return SdjaxError(
        f"this is one of {count} processes, and training on several together is not supported yet: "
        f"start a single one{way_out}"
    )


def largest_divisor(most, sizes):
    """The largest number up to `most` that divides each of `sizes`."""
    return max(n for n in range(1, most + 1) if not any(size % n for size in sizes))


def use_compile_cache(folder=None):
    """Keep compiled programs between runs in `folder` (default: ~/.cache/sdjax/compilations).

    JAX_COMPILATION_CACHE_DIR, where set, is left in charge.
    """
    if folder is None:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "sdjax" / "compilations"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


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


def map_over_devices(function, items):
    """The compiled `function(shared, *items)` with the items split over the local devices.

    function: (a tree, `items` trees of arrays [n, …]) -> tree of arrays [n, …], where no item
      depends on another.

    Returns a function of the same arguments that takes any n and gives NumPy arrays; n is padded
    to a multiple of the devices by repeating the last item. It compiles once for a shape.
    """
    mapped = jax.pmap(function, axis_name=AXIS, in_axes=(None,) + (0,) * items)

    def call(shared, *arrays):
        devices = jax.local_device_count()
        count = len(jax.tree.leaves(arrays)[0])
        rows = np.minimum(np.arange(count + -count % devices), count - 1)

        def split(x):
            return x[rows].reshape(devices, -1, *x.shape[1:])

        out = mapped(shared, *jax.tree.map(split, arrays))
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:count], out)

    return call
