"""How much memory there is, and one line where it is not enough."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from sdjax.errors import SdjaxError

_GROUP = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where it has no limit of its own


class Memory(NamedTuple):
    """A memory that arrays lie in."""

    size: int
    """Bytes."""
    shared: bool
    """Whether it is that of all local devices; else each has its own."""


def of_host() -> int | None:
    """Bytes of this machine's memory, or of its container's share; None where that is not told."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
    try:
        return min(size, int(_GROUP.read_text()))
    except (OSError, ValueError):
        return size


def of_devices() -> Memory | None:
    """The memory of the local devices; None where it is not told."""
    device = jax.local_devices()[0]
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return Memory(limit, shared=False)
    size = of_host() if device.platform == "cpu" else None
    return None if size is None else Memory(size, shared=True)


@contextlib.contextmanager
def told_when_full(advice: str) -> Iterator[None]:
    """What does not fit into memory meanwhile, on a device or the host, as SdjaxError.

    advice: what to ask for instead.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        lines = str(error).strip().splitlines() or [""]
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise SdjaxError(f"out of memory ({lines[0][:200]}): {advice}") from error
    except MemoryError as error:
        raise SdjaxError(f"out of memory ({error or 'on the host'}): {advice}") from error
