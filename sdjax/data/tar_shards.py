"""Tar files whose members of one name are one sample, as WebDataset and img2dataset write them."""

import io
import json

import numpy as np
from PIL import Image

from sdjax.data.filters import Filter
from sdjax.data.images import decode_image
from sdjax.data.pictures import BrokenItem
from sdjax.stores import Store, last_of

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "avif")
_CAPTIONS = ("txt", "caption", "text")
_HEADER = 512
_READ_AT_ONCE = 2**20  # bytes: a sample that is not longer is read whole


class TarShards:
    """What `sdjax.data.shards.Shards` asks of tar files.

    caption_key: what of a sample's JSON is its caption; by default its text, and where there is
    none, the JSON's caption.
    """

    ending = r"\.tar$"

    def __init__(self, store: Store, filter: Filter, caption_key: str | None, size: int = 0):
        self._store, self._filter, self._key, self._size = store, filter, caption_key, size

    def made_by(self) -> str:
        """What a shard's index depends on beside the shard."""
        return f"tar 1 {self._filter}"

    def scan(self, path: str, size: int):
        """(index, samples left out, what is wrong with the shard or None).

        index: for each usable sample where its members lie, {ending: int64 [n, 2]} of offsets and
        sizes, -1 for those it lacks.
        """
        rows, left_out, problem, groups = [], 0, None, _samples(self._store, path, size)
        while True:
            try:
                sample = next(groups, None)
            except _Damaged as error:
                problem = f"{error}; the {len(rows) + left_out} whole samples before it are read"
                break
            if sample is None:
                break
            if self._filter and not self._accepted(path, sample):
                left_out += 1
            else:
                rows.append(sample)
        endings = sorted({ending for row in rows for ending in row})
        index = {
            ending: np.array([row.get(ending, (-1, 0)) for row in rows], np.int64).reshape(-1, 2)
            for ending in endings
        }
        return index, left_out, problem

    def count(self, index) -> int:
        """How many samples an index has."""
        return len(next(iter(index.values()), ()))

    def item(self, path: str, index, row: int):
        """{"image": uint8 [h, w, 3], "caption": str} or, without a picture, the arrays of the
        sample's .npy members by their names, and its caption.
        """
        name = self.name(path, index, row)
        parts = self._parts(path, index, row, name)
        known = _json(parts.get("json"), name) if self._needs_json(parts) else {}
        caption = self._caption(parts, known)
        arrays = {
            ending.removesuffix(".npy"): _array(data, name)
            for ending, data in parts.items() if ending.endswith(".npy")
        }
        if arrays:
            return {**arrays, "caption": caption}
        if "image" not in parts:
            raise BrokenItem(name, f"has no picture: none of its members ends in "
                             f"{', '.join(PICTURES)}")
        return {"image": decode_image(parts["image"], name, 2 * self._size), "caption": caption}

    def name(self, path: str, index, row: int) -> str:
        """What a sample is called in messages."""
        places = [place[row, 0] for place in index.values() if place[row, 0] >= 0]
        return f"{last_of(path)} sample {row} at byte {min(places)}"

    def _parts(self, path, index, row, name):
        places = {
            ending: place[row].tolist() for ending, place in index.items() if place[row, 0] >= 0
        }
        first = min(start for start, _ in places.values())
        length = max(start + size for start, size in places.values()) - first
        if length > _READ_AT_ONCE:
            found = {e: self._store.part(path, *place) for e, place in places.items()}
        else:
            whole = self._store.part(path, first, length)
            found = {e: whole[at - first:at - first + n] for e, (at, n) in places.items()}
        if any(len(found[ending]) < size for ending, (_, size) in places.items()):
            raise BrokenItem(name, "the shard is shorter than it was")
        return found

    def _needs_json(self, parts):
        return "json" in parts and (self._key is not None or "caption" not in parts)

    def _caption(self, parts, known):
        if self._key is None and "caption" in parts:
            return " ".join(parts["caption"].decode("utf-8", "replace").split())
        caption = known.get(self._key or "caption")
        return caption.strip() if isinstance(caption, str) else ""

    def _accepted(self, path, sample):
        known = {}
        if "json" in sample:
            known = _json(self._store.part(path, *sample["json"]), last_of(path))
        width, height = known.get("width"), known.get("height")
        if self._filter.of_sizes and not (width and height):
            if "image" not in sample:
                return False
            try:
                data = self._store.part(path, *sample["image"])
                width, height = Image.open(io.BytesIO(data)).size
            except Exception:  # of Pillow, of many kinds: it is counted where it is read
                return True
        return self._filter.accepts(width or 1, height or 1, known)


class _Damaged(Exception):
    """A tar file that cannot be read on."""


def _samples(store, path, size):
    """Of each sample in a tar file where its members lie: {ending: (offset, size)}."""
    key, sample = None, {}
    for name, start, length in _members(store, path, size):
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not ending or stem.startswith("__"):
            continue
        if (folder, stem) != key:
            if sample:
                yield sample
            key, sample = (folder, stem), {}
        ending = ending.lower()
        kind = "image" if ending in PICTURES else "caption" if ending in _CAPTIONS else ending
        if kind not in ("image", "caption", "json") and not kind.endswith("npy"):
            continue
        sample.setdefault(kind, (start, length))
    if sample:
        yield sample


def _members(store, path, size):
    """(name, offset, size) of each file in a tar file: ustar, with GNU's and POSIX' long names."""
    at, longer = 0, None
    while at + _HEADER <= size:
        header = store.part(path, at, _HEADER)
        if not any(header):
            return
        try:
            checksum = int(header[148:156].strip(b" \0"), 8)
            length = _number(header[124:136])
        except ValueError:
            raise _Damaged(f"damaged at byte {at}") from None
        if checksum != sum(header) - sum(header[148:156]) + 8 * 32:
            raise _Damaged(f"damaged at byte {at}")
        kind, start = header[156:157], at + _HEADER
        at = start + -(-length // _HEADER) * _HEADER
        if start + length > size:
            raise _Damaged(f"cut short at byte {size}")
        if kind == b"L":
            longer = store.part(path, start, length).rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"x":
            longer = _pax(store.part(path, start, length)).get("path", longer)
        elif kind in (b"0", b"\0", b"7"):
            name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
            if header[257:262] == b"ustar" and header[345] and header[263:265] == b"00":
                prefix = header[345:500].split(b"\0")[0].decode("utf-8", "replace")
                name = f"{prefix}/{name}"
            yield longer or name, start, length
            longer = None
    # An end mark of zeros is missing.
    raise _Damaged(f"cut short at byte {size}" if size else "empty")


def _number(field):
    if field[0] & 0x80:  # GNU's base 256
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _pax(data):
    """POSIX' records "length key=value" of a file's header."""
    found, at = {}, 0
    while at < len(data) and b" " in data[at:at + 12]:
        length = int(data[at:data.index(b" ", at)])
        key, _, value = data[at:at + length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        at += max(length, 1)
    return found


def _json(data, name):
    try:
        known = json.loads(data)
    except (ValueError, TypeError) as error:
        raise BrokenItem(name, f"its JSON cannot be read: {error}") from error
    return known if isinstance(known, dict) else {}


def _array(data, name):
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BrokenItem(name, f"an array of it cannot be read: {error}") from error
