"""One training at a time in a folder."""

import contextlib
import fcntl
from pathlib import Path

from sdjax.errors import SdjaxError


@contextlib.contextmanager
def locked(folder):
    """Keep other trainings out of `folder`; SdjaxError where one is at work there already.

    The lock goes with the process that holds it, however that ends.
    """
    with (Path(folder) / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            busy = isinstance(error, BlockingIOError)
            reason = "another training is at work there" if busy else error.strerror
            raise SdjaxError(
                f"cannot lock {folder}: {reason}; wait for it, or train into another folder"
            ) from error
        yield
