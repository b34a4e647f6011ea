"""Memory that the process keeps between computations on the CPU."""

import ctypes
import sys

# Numbers of glibc's mallopt, from <malloc.h>, with the value each is given.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
SETTINGS = {
    M_ARENA_MAX: 1,  # other arenas cannot grow to the size of a program's workspace
    M_MMAP_MAX: 0,  # nothing is mapped on its own, to be given back when it is freed
    M_TRIM_THRESHOLD: 2**31 - 1,
    M_TOP_PAD: 64 * 2**20,
}


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, for the rest of its life.

    XLA:CPU allocates each program's workspace anew for every call. By default glibc gives such
    large pieces back to the kernel, which has to hand out and clear every page again at the next
    call: a quarter of the time of a small autoencoder's training step. Returns whether the C
    library has these settings; elsewhere nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in SETTINGS.items())
