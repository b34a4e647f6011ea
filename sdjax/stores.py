"""Files at addresses such as gs://bucket/folder, by fsspec; paths of this machine go the same way.
"""

import os
import re
import threading
import time
from collections import OrderedDict
from pathlib import Path, PurePath

from .errors import SdjaxError

# As pathlib writes it too, which makes one slash of two. A single letter is a drive of Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}
BLOCK = 4 * 2**20  # bytes of a remote file that are read at once
KEPT = 512  # blocks kept, of all files together: windows of 16 streams of pictures
TRIES = 4  # of a remote read, each after twice the time


def scheme_of(path: str | os.PathLike) -> str | None:
    """"gs" of gs://bucket/folder; None for a path of this machine."""
    found = _SCHEME.match(os.fspath(path))
    return found[1] if found else None


def address(path: str | os.PathLike) -> str:
    """The address as it was written, also where pathlib has made one slash of two."""
    text = os.fspath(path)
    return _SCHEME.sub(r"\1://", text, count=1)


def check_store(path: str | os.PathLike) -> None:
    """SdjaxError for an address that is no folder of files: https:// and the hub's."""
    if (scheme := scheme_of(path)) in ("http", "https", "hf"):
        raise SdjaxError(
            f"expected a path, or an address such as gs://bucket/folder, got {address(path)}: "
            f"{scheme}:// is not supported; copy what lies there to a local disk"
        )


class Store:
    """The files of one kind of address. Paths go in and come out as users write them."""

    def __init__(self, path: str | os.PathLike):
        self.scheme = scheme_of(path)
        if self.scheme == "file":
            self.scheme, path = None, _SCHEME.sub("/", os.fspath(path), count=1)
        try:
            import fsspec

            self._files = fsspec.filesystem(self.scheme or "file")
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(self.scheme)
            hint = f"pip install {package}" if package else "fsspec knows no such kind of address"
            raise SdjaxError(f"{address(path)} cannot be reached: {hint}") from error
        self._blocks = _Blocks(self._fetched)

    @property
    def remote(self) -> bool:
        """Whether the files are not of this machine's disks."""
        return self.scheme is not None

    def find(self, folder: str) -> list[str]:
        """All files below a folder, sorted; none where there is no such folder."""
        with self._told(folder):
            self._files.invalidate_cache()
            return sorted(self._named(path) for path in self._files.find(self._own(folder)))

    def size(self, path: str) -> tuple[int, str]:
        """(bytes of a file, what else tells its versions apart). FileNotFoundError where absent."""
        info = self._files.info(self._own(path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
        marks = [info.get(n) for n in ("etag", "ETag", "generation", "mtime", "created")]
        return info["size"], str(next((mark for mark in marks if mark is not None), ""))

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder of that name."""
        with self._told(path):
            self._files.invalidate_cache()
            return self._files.exists(self._own(path))

    def read(self, path: str) -> bytes:
        """A whole file."""
        with self._told(path):
            return self._files.cat_file(self._own(path))

    def open(self, path: str):
        """A file open for reading anywhere in it."""
        with self._told(path):
            return self._files.open(self._own(path), "rb")

    def part(self, path: str, start: int, size: int) -> bytes:
        """So many bytes of a file, fewer at its end; remote files are read in larger blocks, of
        which the last are kept.
        """
        if self.remote:
            return self._blocks.part(path, start, size)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise _unreadable(path, error) from error

    def write(self, path: str, data: bytes) -> None:
        """A file, whole or not at all."""
        with self._told(path):
            if self.remote:
                self._files.pipe_file(self._own(path), data)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            part = f"{path}.{os.getpid()}.part"
            try:
                Path(part).write_bytes(data)
                os.replace(part, path)
            finally:
                Path(part).unlink(missing_ok=True)

    def download(self, path: str, place: Path) -> None:
        """A file to this machine."""
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._told(path):
            self._files.get_file(self._own(path), str(place))

    def upload(self, place: Path, path: str) -> None:
        """A file of this machine to there."""
        with self._told(path):
            self._files.put_file(str(place), self._own(path))

    def remove(self, path: str) -> None:
        """A file, if it is there."""
        with self._told(path):
            if self._files.exists(self._own(path)):
                self._files.rm_file(self._own(path))

    def _own(self, path):
        return self._files._strip_protocol(address(path))

    def _named(self, path):
        return f"{self.scheme}://{path.lstrip('/')}" if self.remote else path

    def _fetched(self, path, start, size):
        for attempt in range(TRIES):
            try:
                return self._files.cat_file(self._own(path), start, start + size)
            except FileNotFoundError as error:
                raise _unreadable(path, error) from error
            except Exception as error:  # of the store's own kinds: the network, its limits
                if attempt == TRIES - 1:
                    raise _unreadable(path, error) from error
                time.sleep(2**attempt)

    def _told(self, path):
        return _Told(path)


class _Told:
    """What a store refuses, in one line."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception) and not isinstance(error, SdjaxError):
            raise _unreadable(self._path, error) from error


def _unreadable(path, error):
    if isinstance(error, FileNotFoundError):
        return SdjaxError(f"{address(path)} is not there, or no longer: put it back, and the same "
                          "command goes on from the last checkpoint")
    why = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return SdjaxError(f"{address(path)}: {type(error).__name__}: {why}")


class _Blocks:
    """The last blocks that were read of remote files."""

    def __init__(self, fetch):
        self._fetch, self._lock = fetch, threading.Lock()
        self._kept, self._coming = OrderedDict(), {}

    def part(self, path, start, size):
        first, last = start // BLOCK, (start + max(size, 1) - 1) // BLOCK
        whole = b"".join(self._block(path, number) for number in range(first, last + 1))
        return whole[start - first * BLOCK:][:size]

    def _block(self, path, number):
        key = path, number
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            lock = self._coming.setdefault(key, threading.Lock())
        with lock:  # several threads want one block: one fetches it
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            block = self._fetch(path, number * BLOCK, BLOCK)
            with self._lock:
                self._kept[key] = block
                self._coming.pop(key, None)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return block


def expanded(pattern: str) -> list[str]:
    """The names of a pattern such as NAME-{0000..0099}.tar, or the one name that it is."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    if int(last) < int(first):
        raise SdjaxError(f"{pattern}: {{{first}..{last}}} runs backwards")
    names = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[:found.start()], pattern[found.end():]
    return [name for number in names for name in expanded(before + number + after)]


def joined(folder: str | os.PathLike, *names: str) -> str:
    """A path below a folder or address."""
    return "/".join([address(folder).rstrip("/"), *names])


def last_of(path: str) -> str:
    """The name at a path's end."""
    return PurePath(path).name
