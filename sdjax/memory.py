"""Memory that freed arrays leave behind."""

import ctypes
import sys

# Of glibc's malloc.h. One arena: those that other threads get cannot hold a large array, which is
# then mapped anew whatever the limit is, and XLA allocates in its own threads.
_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def keep_freed_memory():
    """Let the process keep freed memory for its next large arrays. True where that was done.

    XLA:CPU allocates the temporary memory of a program anew in every call, and glibc takes large
    blocks from the system each time: the page faults are a fifth of a training step. The process
    then stays as large as it once was. Only on Linux with glibc; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(*setting) for setting in _SETTINGS.values())
