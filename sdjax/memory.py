"""The C library's memory, as XLA's large arrays on a CPU need it. Only glibc has these settings;
elsewhere nothing changes.

XLA:CPU allocates the temporary memory of a program anew in every call, and glibc takes large blocks
from the system each time: page faults on hundreds of megabytes, for every training step.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_LARGEST = 2**31 - 1
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""What the environment variable GLIBC_TUNABLES holds to get pages of 2 MiB."""


def keep_freed_memory():
    """Let the process keep freed memory for its next large arrays. True where that was done.

    The process then stays as large as it once was.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def use_huge_pages():
    """Start this program again in the same process, its memory in pages of 2 MiB.

    glibc reads that setting (from 2.35 on; earlier ones ignore it) only when a process begins.
    Returns where it is set already, or cannot be. Call it before anything else is done.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or _glibc("gnu_get_libc_version") is None:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, HUGE_PAGES]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _glibc(name):
    """A function of glibc, None where the system has another C library."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
