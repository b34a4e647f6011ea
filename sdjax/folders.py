"""Folders that a command is about to write to."""

import os
from pathlib import Path

from .errors import SdjaxError


def writable_folder(path: str | os.PathLike) -> Path:
    """A folder, made where it is missing; SdjaxError where nothing can be written into it.

    Ask before the work, so that hours of it are not lost for want of a place.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SdjaxError(f"cannot write to the folder {path}: {error.strerror}") from error
    return path
