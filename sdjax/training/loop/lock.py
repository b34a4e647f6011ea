"""One training at a time in a folder."""

import contextlib
import time
from pathlib import Path

import jax
from etils import epath

from sdjax.errors import SdjaxError
from sdjax.mirror import checkpoints_of
from sdjax.parallel import leader, meet

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


def check_shared(folder):
    """SdjaxError in a process of a job that does not see the folder of process 0."""
    mark = epath.Path(checkpoints_of(folder)).parent / ".job"
    if leader():
        mark.write_text(str(time.time_ns()), encoding="utf-8")
    meet()
    if not mark.exists():
        raise SdjaxError(
            f"process {jax.process_index()} does not see what process 0 writes in {folder}: all "
            "processes of a job need one work folder, on a disk that they share or in a bucket"
        )
    meet()
    if leader():
        mark.unlink(missing_ok=True)


def _lock(file):
    """Takes the lock of an open file or raises OSError at once."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
