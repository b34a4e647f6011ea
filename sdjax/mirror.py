"""Work folders at addresses such as gs://bucket/run: a folder here, what is in it kept there."""

import contextlib
import os
import tempfile
import threading
from pathlib import Path

import jax

from .errors import SdjaxError
from .parallel import in_turn, leader
from .stores import Store, address, check_store, joined, last_of, scheme_of

EVERY = 10.0  # seconds between looks at what is new
DIRECT = ("gs", "s3")  # where Orbax itself writes: all hosts, each its part
WHOLE = "whole"  # beside a step of checkpoints that is there whole
STEPS = "checkpoints"
_MIRRORS: dict[Path, "Mirror"] = {}


@contextlib.contextmanager
def mirrored(folder: str | os.PathLike):
    """A local folder for the work of a command, whose files are brought to the address `folder`
    as they arise; a path of this machine is given as it is.

    What lies at the address is there at the start. At the end, also by an error, all that is new is
    brought there; where that fails, SdjaxError.
    """
    if scheme_of(folder) is None:
        yield Path(folder)
        return
    check_store(folder)
    with tempfile.TemporaryDirectory(prefix="sdjax-") as here:
        there = address(folder).rstrip("/")
        mirror = Mirror(there, Path(here).resolve() / last_of(there))
        mirror.pull()
        _MIRRORS[mirror.here] = mirror
        pushing = leader()
        try:
            if pushing:
                mirror.start()
            yield mirror.here
        finally:
            del _MIRRORS[mirror.here]
            if pushing:
                mirror.stop()


def place_of(folder: str | os.PathLike) -> str:
    """Where a folder is kept: the address of one that is mirrored, else the folder itself."""
    mirror, rest = _mirror_of(folder)
    return str(folder) if mirror is None else joined(mirror.there, *rest.parts)


def checkpoints_of(folder: str | os.PathLike) -> str:
    """Where the checkpoints of a run in `folder` lie: there where Orbax writes to such addresses
    itself and several processes save together, else in the folder, to be brought there.
    """
    mirror, _ = _mirror_of(folder)
    if mirror is not None and mirror.direct:
        return joined(place_of(folder), STEPS)
    return str(Path(folder) / STEPS)


@contextlib.contextmanager
def in_turn_at(folder: str | os.PathLike):
    """The body in process 0 first, then in the others, which find what it has written in a folder
    that may be mirrored.
    """
    mirror, _ = _mirror_of(folder)
    with in_turn():
        if mirror is not None and not leader():
            mirror.pull()
        yield
        if mirror is not None and leader():
            mirror.push()


def push_all() -> None:
    """Brings everything that is new where it is kept, before the process ends."""
    if leader():
        for mirror in list(_MIRRORS.values()):
            mirror.push()


def _mirror_of(folder):
    path = Path(folder)
    for here, mirror in _MIRRORS.items():
        if path.is_relative_to(here):
            return mirror, path.relative_to(here)
    return None, path


class Mirror:
    """A local folder and an address that has its files.

    A step of checkpoints counts there once it is whole: a mark is written after its files, and
    removed before them.
    """

    def __init__(self, there: str, here: Path):
        self.there, self.here = there.rstrip("/"), here
        self._store, self._known = Store(there), {}
        self.direct = self._store.scheme in DIRECT and jax.process_count() > 1
        if jax.process_count() > 1 and not self.direct:
            raise SdjaxError(f"{there}: several processes need a work folder on a disk that they "
                             f"share, or at {' or '.join(f'{name}://' for name in DIRECT)}")
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = None

    def pull(self) -> None:
        """Brings what is there, and not here; of checkpoints the whole steps."""
        names = [path.removeprefix(self.there + "/") for path in self._store.find(self.there)]
        whole = {name.removesuffix("." + WHOLE) for name in names if name.endswith("." + WHOLE)}
        for name in names:
            step = _step(name)
            if step and step not in whole and not self.direct and leader():
                self._store.remove(joined(self.there, name))  # a kill left it unfinished
            if name.endswith("." + WHOLE) or (step and (self.direct or step not in whole)):
                continue
            place = self.here / name
            if not place.exists():
                self._store.download(joined(self.there, name), place)
                self._known[name] = _version(place)
        for step in whole:
            self._known[f"{step}.{WHOLE}"] = WHOLE

    def push(self) -> None:
        """Brings what is new or changed here to there, and removes what is gone."""
        with self._lock:
            found = self._found()
            new = [name for name, version in found.items() if self._known.get(name) != version]
            gone = [name for name in self._known if name not in found]
            for name in sorted(gone, key=lambda name: not name.endswith("." + WHOLE)):
                self._store.remove(joined(self.there, name))
                del self._known[name]
            lost = set()  # steps that have gone meanwhile
            for name in sorted(new, key=lambda name: name.endswith("." + WHOLE)):
                if name.removesuffix("." + WHOLE) in lost:
                    continue
                if name.endswith("." + WHOLE):
                    self._store.write(joined(self.there, name), b"")
                else:
                    try:
                        self._store.upload(self.here / name, joined(self.there, name))
                    except SdjaxError:
                        if (self.here / name).exists():
                            raise
                        lost.add(_step(name))
                        continue
                self._known[name] = found[name]

    def start(self) -> None:
        """Pushes from time to time, in a thread."""
        self._thread = threading.Thread(target=self._run, name="sdjax-mirror", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pushes for the last time; what could not be brought there is told."""
        self._stopped.set()
        self._thread.join()
        self.push()

    def _run(self):
        while not self._stopped.wait(EVERY):
            with contextlib.suppress(SdjaxError):  # the next try, or the last, may succeed
                self.push()

    def _found(self):
        """What is to be there: name -> version; of unfinished files and steps nothing."""
        found, steps = {}, set()
        for folder, folders, files in os.walk(self.here):
            folders[:] = [f for f in folders if not _unfinished(f)]
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self.here).as_posix()
                if file in (".lock", ".job", ".writable") or _unfinished(file):
                    continue
                try:
                    found[name] = _version(path)
                except FileNotFoundError:
                    continue
                if step := _step(name):
                    steps.add(step)
        return found | {f"{step}.{WHOLE}": WHOLE for step in steps}


def _step(name):
    """"run/checkpoints/12" of what lies in it; None elsewhere."""
    parts = name.split("/")
    if STEPS in parts and (at := parts.index(STEPS) + 1) < len(parts) - 1:
        return "/".join(parts[:at + 1]) if parts[at].isdigit() else None
    return None


def _unfinished(name):
    return name.endswith(".part") or ".orbax-checkpoint-tmp" in name


def _version(path):
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def local_copy(source: str | os.PathLike) -> Path:
    """The path of a model: of one at an address a copy, kept in a temporary folder until the
    program ends.
    """
    if scheme_of(source) is None:
        return Path(source)
    check_store(source)
    there = address(source).rstrip("/")
    if there not in _COPIES:
        store = Store(there)
        found = store.find(there)
        if not found:
            raise SdjaxError(f"no such model folder or file: {there}")
        folder = tempfile.TemporaryDirectory(prefix="sdjax-model-")
        place = Path(folder.name, there.rpartition("/")[2])
        for path in found:
            name = path.removeprefix(there).lstrip("/")
            store.download(path, place / name if name else place)
        _COPIES[there] = folder, place
    return _COPIES[there][1]


_COPIES: dict[str, tuple] = {}
