"""Parquet files with a column of encoded pictures, as the data sets of Hugging Face have it."""

import threading
from collections import OrderedDict

import numpy as np

from sdjax.data.filters import Filter
from sdjax.data.images import decode_image
from sdjax.data.pictures import BrokenItem
from sdjax.errors import SdjaxError
from sdjax.stores import Store, last_of

CAPTIONS = ("caption", "text", "prompt")
ROOM = 2 * 2**30  # bytes of row groups that are kept
_SIZES = ("width", "height")


class ParquetShards:
    """What `sdjax.data.shards.Shards` asks of parquet files.

    image_key: the column of pictures, {"bytes", "path"} or bytes. caption_key: that of captions, by
    default caption, text or prompt.
    """

    ending = r"\.parquet$"

    def __init__(
        self, store: Store, filter: Filter, caption_key: str | None, image_key: str, size: int = 0
    ):  # fmt: skip
        self._store, self._filter, self._size = store, filter, size
        self._caption, self._image = caption_key, image_key
        self._lock, self._groups, self._held = threading.Lock(), OrderedDict(), 0
        self._parquet = _pyarrow()

    def made_by(self) -> str:
        """What a shard's index depends on beside the shard."""
        return f"parquet 1 {self._filter} {self._image} {self._caption}"

    def scan(self, path: str, size: int):
        """(index, samples left out, what is wrong with the shard or None); see `TarShards`.

        index: {"group", "row"} int32 [n], the row group and where in it each usable sample lies.
        """
        try:
            with self._store.open(path) as file:
                shard = self._parquet.ParquetFile(file)
                names = shard.schema_arrow.names
                self._check(path, names)
                sizes = [shard.metadata.row_group(g).num_rows for g in range(shard.num_row_groups)]
                kept = [self._kept(shard, group, names, path) if self._filter else np.arange(n)
                        for group, n in enumerate(sizes)]
        except SdjaxError:
            raise
        except Exception as error:  # of pyarrow, of many kinds
            empty = np.zeros(0, np.int32)
            return {"group": empty, "row": empty}, 0, f"no whole parquet file: {_first(error)}"
        groups = [np.full(len(rows), group) for group, rows in enumerate(kept)]
        index = {"group": groups, "row": kept}
        index = {n: np.concatenate([*a, []]).astype(np.int32) for n, a in index.items()}
        return index, sum(sizes) - len(index["row"]), None

    def count(self, index) -> int:
        """How many samples an index has."""
        return len(index["row"])

    def item(self, path: str, index, row: int):
        """{"image": uint8 [h, w, 3], "caption": str}."""
        name, table = self.name(path, index, row), self._group(path, int(index["group"][row]))
        record = table.slice(int(index["row"][row]), 1).to_pylist()[0]
        picture = record[self._image]
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if data is None:
            raise BrokenItem(name, f"its {self._image} holds no bytes")
        caption = next((record[key] for key in self._captions(record)), "")
        caption = caption if isinstance(caption, str) else ""
        return {"image": decode_image(data, name, 2 * self._size), "caption": caption.strip()}

    def name(self, path: str, index, row: int) -> str:
        """What a sample is called in messages."""
        return f"{last_of(path)} row {index['row'][row]} of group {index['group'][row]}"

    def _captions(self, names):
        return [n for n in ((self._caption,) if self._caption else CAPTIONS) if n in names]

    def _check(self, path, names):
        for option, wanted in (("image_key", self._image), ("caption_key", self._caption)):
            if wanted is not None and wanted not in names:
                raise SdjaxError(f"{path} has no column {wanted!r}; set data.{option} to one of "
                                 f"{', '.join(names)}")
        for name in self._filter.names:
            if name not in names:
                raise SdjaxError(f"{path} has no column {name!r}, which data.keep asks for; it has "
                                 f"{', '.join(names)}")

    def _kept(self, shard, group, names, path):
        """Rows of a group that the filter leaves."""
        columns = [*self._filter.names]
        told = all(name in names for name in _SIZES)
        if self._filter.of_sizes:
            columns += _SIZES if told else [self._image]
        records = shard.read_row_group(group, columns=sorted(set(columns))).to_pylist()
        return np.array([
            row for row, record in enumerate(records) if self._accepted(record, told)
        ], np.int32)

    def _accepted(self, record, told):
        width = height = 1
        if self._filter.of_sizes and told:
            width, height = (record[name] or 1 for name in _SIZES)
        elif self._filter.of_sizes:
            picture = record[self._image]
            size = size_of(picture.get("bytes") if isinstance(picture, dict) else picture)
            if size is None:
                return True  # it is counted where it is read
            width, height = size
        return self._filter.accepts(width, height, record)

    def _group(self, path, number):
        with self._lock:
            table = self._groups.get((path, number))
            if table is not None:
                self._groups.move_to_end((path, number))
                return table
        try:
            with self._store.open(path) as file:
                shard = self._parquet.ParquetFile(file)
                columns = [self._image, *self._captions(shard.schema_arrow.names)]
                table = shard.read_row_group(number, columns=columns)
        except SdjaxError:
            raise
        except Exception as error:
            raise SdjaxError(f"{path}: row group {number} cannot be read: {_first(error)}: mend "
                             "the shard, or leave it out") from error
        with self._lock:
            if (path, number) not in self._groups:
                self._groups[path, number] = table
                self._held += table.nbytes
            while self._held > ROOM and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1].nbytes
        return table


def size_of(data):
    """(width, height) of an encoded picture by its header; None where there is none."""
    import io

    from PIL import Image

    try:
        return Image.open(io.BytesIO(data)).size
    except Exception:  # of Pillow, of many kinds
        return None


def _first(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pyarrow():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SdjaxError("the data source parquet:PATH needs pyarrow: pip install pyarrow"
                         ) from error
    return pyarrow.parquet
