"""array_record files of tf.train.Example messages, as tensorflow-datasets writes them."""

import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from sdjax.data.filters import Filter
from sdjax.data.images import decode_image
from sdjax.data.parquet_shards import CAPTIONS, size_of
from sdjax.data.pictures import BrokenItem
from sdjax.errors import SdjaxError
from sdjax.stores import Store, last_of

OPEN = 64  # files that are open at once; of remote ones, so many lie on a disk here
_MANY = 256  # records that are looked through at once


class RecordShards:
    """What `sdjax.data.shards.Shards` asks of array_record files.

    image_key: the feature of encoded pictures. caption_key: that of captions, by default caption,
    text or prompt. Remote files are copied to a temporary folder while they are read.
    """

    ending = r"\.array_?record(-[\d.{}]+-of-\d+)?$"

    def __init__(
        self, store: Store, filter: Filter, caption_key: str | None, image_key: str, size: int = 0
    ):  # fmt: skip
        self._store, self._filter, self._size = store, filter, size
        self._caption, self._image = caption_key, image_key
        self._open, self._lock = OrderedDict(), threading.Lock()
        self._module, self._folder = _array_record(), None

    def made_by(self) -> str:
        """What a shard's index depends on beside the shard."""
        return f"array_record 1 {self._filter} {self._image} {self._caption}"

    def scan(self, path: str, size: int):
        """(index, samples left out, what is wrong with the shard or None); see `TarShards`.

        index: {"row"} int32 [n], the numbers of the usable records.
        """
        try:
            reader = self._reader(path)
            count = reader.num_records()
            if not self._filter:
                self._check(path, reader)
                return {"row": np.arange(count, dtype=np.int32)}, 0, None
            rows = [
                row for start in range(0, count, _MANY)
                for row, data in enumerate(
                    reader.read(range(start, min(start + _MANY, count))), start)
                if self._accepted(example(data))
            ]
        except SdjaxError:
            raise
        except Exception as error:  # of the package, of many kinds
            first = (str(error).splitlines() or [""])[0]
            return {"row": np.zeros(0, np.int32)}, 0, f"no whole array_record file: {first}"
        return {"row": np.array(rows, np.int32)}, count - len(rows), None

    def count(self, index) -> int:
        """How many samples an index has."""
        return len(index["row"])

    def item(self, path: str, index, row: int):
        """{"image": uint8 [h, w, 3], "caption": str}."""
        name = self.name(path, index, row)
        try:
            known = example(self._reader(path).read([int(index["row"][row])])[0])
        except (RuntimeError, ValueError, IndexError) as error:
            raise BrokenItem(name, f"cannot be read: {error}") from error
        data = known.get(self._image)
        if not isinstance(data, bytes):
            raise BrokenItem(name, f"has no {self._image}: set data.image_key to one of "
                             f"{', '.join(known)}")
        keys = (self._caption,) if self._caption else CAPTIONS
        caption = next((known[key] for key in keys if isinstance(known.get(key), bytes)), b"")
        return {
            "image": decode_image(data, name, 2 * self._size),
            "caption": caption.decode("utf-8", "replace").strip(),
        }

    def name(self, path: str, index, row: int) -> str:
        """What a sample is called in messages."""
        return f"{last_of(path)} record {index['row'][row]}"

    def _check(self, path, reader):
        if reader.num_records() and self._image not in (known := example(reader.read([0])[0])):
            raise SdjaxError(f"{path} has no feature {self._image!r}; set data.image_key to one of "
                             f"{', '.join(known) or '(its records are no tf.train.Example)'}")

    def _accepted(self, known):
        size = size_of(known.get(self._image)) if self._filter.of_sizes else (1, 1)
        plain = {n: v.decode("utf-8", "replace") if isinstance(v, bytes) else v
                 for n, v in known.items() if n in self._filter.names}
        return size is None or self._filter.accepts(*size, plain)

    def _reader(self, path):
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path][0]
            place = path
            if self._store.remote:
                if self._folder is None:
                    self._folder = tempfile.TemporaryDirectory(prefix="sdjax-records-")
                place = Path(self._folder.name, last_of(path))
                self._store.download(path, place)
            reader = self._module.ArrayRecordReader(str(place), "")
            self._open[path] = reader, place
            while len(self._open) > OPEN:
                _, (_, old) = self._open.popitem(last=False)
                if self._store.remote:
                    old.unlink(missing_ok=True)
            return reader


def example(data: bytes) -> dict:
    """The features of a tf.train.Example by their names: bytes, float or int, lists where several.

    Anything else gives {} or ValueError.
    """
    found = {}
    for number, features in _fields(data):
        if number != 1 or not isinstance(features, bytes):
            continue
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            if isinstance(parts.get(1), bytes):
                values = _values(parts.get(2, b""))
                found[parts[1].decode()] = values[0] if len(values) == 1 else values
    return found


def _values(feature):
    values = []
    for kind, items in _fields(feature):
        for _, value in _fields(items):
            if kind == 1:
                values.append(value)
            elif kind == 2:
                values += np.frombuffer(value, "<f4").tolist()
            elif isinstance(value, int):
                values.append(_signed(value))
            else:
                values += [_signed(one) for one in _varints(value)]
    return values


def _fields(data):
    """(number, value) of a protocol buffer's fields: int, or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at:at + size], at + size
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            raise ValueError("no tf.train.Example")
        if at > len(data):
            raise ValueError("no tf.train.Example, or one cut short")
        yield tag >> 3, value


def _varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("no tf.train.Example, or one cut short")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varints(data):
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _signed(value):
    return value - 2**64 if value >= 2**63 else value


def _array_record():
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise SdjaxError("the data source array_record:PATH needs array_record: pip install "
                         "array_record") from error
    return array_record_module
