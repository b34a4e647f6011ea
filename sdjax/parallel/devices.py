"""One XLA CPU device a core."""

import os

import jax

from sdjax.errors import SdjaxError

THREADS_PER_DEVICE = 2


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


def largest_divisor(most, sizes):
    """The largest number up to `most` that divides each of `sizes`."""
    return max(n for n in range(1, most + 1) if not any(size % n for size in sizes))
