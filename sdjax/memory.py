"""Memory that freed arrays leave behind."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_LARGEST = 2**31 - 1


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
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
