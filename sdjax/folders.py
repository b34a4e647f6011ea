"""Folders that a command is about to write to."""

import os
from pathlib import Path

from .errors import SdjaxError


def check_writable(path: str | os.PathLike) -> None:
    """SdjaxError where a folder cannot be made or written into; nothing is made or changed.

    Ask before other checks that may still end a command, so that it leaves no empty folder.
    """
    path = Path(path)
    try:
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    except OSError as error:
        raise SdjaxError(f"cannot write to the folder {path}: {error.strerror}") from error
    if not there.is_dir():
        raise SdjaxError(f"cannot write to the folder {path}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SdjaxError(f"cannot write to the folder {path}: {there} may not be changed")


def writable_folder(path: str | os.PathLike) -> Path:
    """A folder, made where it is missing; SdjaxError where nothing can be written into it.

    Make it before the work, so that hours of it are not lost for want of a place.
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
