"""Folders that a command reads from or is about to write to."""

import contextlib
import os
import re
from pathlib import Path

from .errors import SdjaxError

# As pathlib writes it too, which makes one slash of two. A single letter is a drive of Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def check_local(path: str | os.PathLike) -> None:
    """SdjaxError where a path is an address such as gs://bucket/folder, not one of this machine."""
    if scheme := _SCHEME.match(os.fspath(path)):
        raise SdjaxError(
            f"expected a path on this machine, got {path}: {scheme[1]}:// is not supported; copy "
            "what lies there to a local disk, or mount it"
        )


@contextlib.contextmanager
def one_line_errors(folder: str | os.PathLike):
    """What the disk refuses meanwhile, as SdjaxError: it is full, say."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        raise SdjaxError(
            f"{place}: {error.strerror or error}; what was saved before stays: when that is "
            "mended, the same command goes on from there"
        ) from error


def check_writable(path: str | os.PathLike) -> None:
    """SdjaxError where a folder cannot be made or written into; nothing is made or changed.

    Ask before other checks that may still end a command, so that it leaves no empty folder.
    """
    check_local(path)
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
    check_writable(path)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SdjaxError(f"cannot write to the folder {path}: {error.strerror}") from error
    return path
