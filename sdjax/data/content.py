"""What a source holds, told cheaply enough to be asked at every start: what was made of it earlier,
such as cached latents, is then known to be out of date.
"""
import hashlib
import json
import os
from collections.abc import Callable
from typing import NamedTuple


class Stamp(NamedTuple):
    """A file's size and times in nanoseconds; `digest` of its bytes, "" where they were not read.
    """

    size: int
    modified: int
    changed: int
    digest: str

    def same(self, other: "Stamp") -> bool:
        """Whether both are of the same bytes, as far as can be told."""
        if self.digest and other.digest:
            return self.digest == other.digest
        return (self.size, self.modified) == (other.size, other.modified)


class Stamps:
    """The stamps of files.

    known: name -> Stamp of earlier; a file whose size and times are those is not read again.
    read: whether the bytes of others are. Without that their digest is "".
    tell: called with the number of files read so far, after each.
    """

    def __init__(
        self, known: dict[str, Stamp], read: bool = True,
        tell: Callable[[int], None] = lambda count: None,
    ):  # fmt: skip
        self._known, self._read, self._tell, self._count = known, read, tell, 0

    def of(self, path: str | os.PathLike, name: str) -> Stamp:
        """The stamp of a file that `known` calls `name`; all 0 where it cannot be read."""
        try:
            stat = os.stat(path)
            times = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
            known = self._known.get(name)
            if known is not None and known[:3] == times and (known.digest or not self._read):
                return known
            digest = ""
            if self._read:
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
                self._count += 1
                self._tell(self._count)
            return Stamp(*times, digest)
        except OSError:  # opening the picture will say so
            return Stamp(0, 0, 0, "")


class Content(NamedTuple):
    """What a source holds, or its first items.

    files: name -> Stamp of what it is read from. items: of each its file's name and its caption;
    None where items lie together in files, or are drawn. made_by: what else they depend on.
    """

    files: dict[str, Stamp]
    items: tuple[tuple[str, str], ...] | None = None
    made_by: str = ""

    def keys(self, count: int) -> list[str]:
        """Of each of the first `count` items a text that another picture would not have."""
        if self.items is not None:
            return [self.files[name].digest for name, _ in self.items[:count]]
        whole = self.digest()
        return [f"{whole}/{index}" for index in range(count)]

    def digest(self) -> str:
        """Of everything: the same where nothing has changed but the files' times."""
        files = [(name, stamp.digest or stamp.size) for name, stamp in self.files.items()]
        return _digest(files, self.items, self.made_by)

    def captions_digest(self, count: int) -> str:
        """Of the first `count` captions; of everything where they are not known."""
        if self.items is None:
            return self.digest()
        return _digest([caption for _, caption in self.items[:count]])

    def changes(self, before: "Content") -> str:
        """What differs from `before`, in words: "12 pictures added, 1 caption changed"; "" where
        nothing does.
        """
        both = [name for name in self.files if name in before.files]
        changed = [name for name in both if not self.files[name].same(before.files[name])]
        added, removed = len(self.files) - len(both), len(before.files) - len(both)
        if self.items is None or before.items is None:
            same = not (added or removed or changed) and self[1:] == before[1:]
            return "" if same else "other pictures or captions"
        now, then = self._captions(), before._captions()
        captions = [name for name in both if now[name] != then[name]]
        counts = (
            (added, "picture", "added"), (len(changed), "picture", "changed"),
            (removed, "picture", "removed"), (len(captions), "caption", "changed"),
        )
        return ", ".join(
            f"{count} {what}{'s' * (count != 1)} {how}" for count, what, how in counts if count
        )

    def _captions(self):
        """name -> captions, several where a picture is several items."""
        captions = {}
        for name, caption in self.items:
            captions.setdefault(name, []).append(caption)
        return captions

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "Content":
        """What `to_json` gave; ValueError, KeyError or TypeError for anything else."""
        values = json.loads(text)
        files = {name: Stamp(*stamp) for name, stamp in values["files"].items()}
        items = values["items"]
        items = None if items is None else tuple((name, caption) for name, caption in items)
        return cls(files, items, values["made_by"])


def drawn_content(source, count: int = 16) -> Content:
    """Of a source that draws its items: by its settings, repr(source), and its first items."""
    digest = hashlib.blake2b(repr(source).encode())
    for index in range(count):
        item = source[index]
        digest.update(item["image"].tobytes() + item["caption"].encode())
    return Content({}, made_by=digest.hexdigest()[:32])


def _digest(*values):
    return hashlib.blake2b(json.dumps(values).encode()).hexdigest()[:16]
