"""One training at a time in a folder."""

import contextlib
from pathlib import Path

from sdjax.errors import SdjaxError

NAME = ".lock"

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


@contextlib.contextmanager
def locked(folder):
    """Keep other trainings out of `folder`; SdjaxError where one is at work there already.

    The lock goes with the process that holds it, however that ends.
    """
    with (Path(folder) / NAME).open("a") as file:
        try:
            _lock(file)
        except OSError as error:
            busy = isinstance(error, (BlockingIOError, PermissionError))  # POSIX, Windows
            reason = "another training is at work there" if busy else error.strerror
            raise SdjaxError(
                f"cannot lock {folder}: {reason}; wait for it, or train into another folder"
            ) from error
        yield


def _lock(file):
    """Takes the lock of an open file or raises OSError at once."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
