"""Samples that lie together in files, local or remote, more than fit into memory."""

import hashlib
import io
import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from sdjax.data.content import Content, Stamp
from sdjax.data.filters import Filter
from sdjax.errors import SdjaxError
from sdjax.parallel import meet
from sdjax.stores import Store, expanded, joined, last_of

SCANNERS = 8  # shards that are looked through at once
_NAMED = 5

_log = logging.getLogger(__name__)


class Shards:
    """A random-access source over shards, in the order of their names.

    source[i] gives {"image": uint8 [height, width, 3], "caption": str}, or whatever arrays a
    sample is made of. `sizes` has the usable samples of each shard.

    Each shard is looked through once to know where its samples lie and which of them the filter
    leaves; what comes of it is kept in the folder `index`, each process of a job making its share.

    Args:
      kind: a class such as `TarShards`, which reads one kind of files.
      pattern: a folder, or names with {0000..0099}.
      index: a folder or address that all processes see; None keeps nothing.
      max_broken_share: of the shards that may be damaged; their whole samples are used.
      split: of a folder where names of shards say so, as train-00000-of-00010.parquet does.
      options: of `kind`.

    Raises:
      SdjaxError: where a shard is absent, none is there, no sample is left, or too many shards are
        damaged.
    """

    def __init__(
        self, kind, pattern, filter=Filter(), index=None, max_broken_share=0.0, split="train",
        **options,
    ):  # fmt: skip
        self._store = Store(pattern)
        self._kind = kind(self._store, filter, **options)
        self.paths = _paths(self._store, pattern, self._kind.ending, split)
        self._index, self.pattern, self._filter = index, pattern, filter
        with ThreadPoolExecutor(SCANNERS) as pool:
            self._marks = list(pool.map(self._marked, self.paths))
            self._share(pool)
            found = list(pool.map(self._table, self.paths, self._marks))
        self._tables = [table for table, _, _ in found]
        self.sizes = [self._kind.count(table) for table in self._tables]
        self._ends = np.cumsum(self.sizes)
        self.left_out = sum(count for _, count, _ in found)
        self._check([(p, why) for p, (_, _, why) in zip(self.paths, found, strict=True) if why],
                    max_broken_share)

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index):
        return self._kind.item(*self._place(index))

    def name(self, index) -> str:
        """What item `index` is called in messages."""
        return self._kind.name(*self._place(index))

    def content(self, stamps, count) -> Content:
        """What the items are: by the shards' sizes and versions."""
        del stamps, count
        files = {
            last_of(path): Stamp(size, 0, 0, hashlib.blake2b(mark.encode()).hexdigest()[:32])
            for path, (size, mark) in zip(self.paths, self._marks, strict=True)
        }
        return Content(files, made_by=self._kind.made_by())

    def _place(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = int(index - self._ends[shard] + self.sizes[shard])
        return self.paths[shard], self._tables[shard], row

    def _marked(self, path):
        try:
            return self._store.size(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SdjaxError(
                f"{self.pattern}: there is no shard {path}: put it back, or name those that there "
                "are"
            ) from error

    def _share(self, pool):
        """The index of this process's share of the shards, where several work on it together."""
        count, own = jax.process_count(), jax.process_index()
        if self._index is not None and count > 1:
            list(pool.map(self._table, self.paths[own::count], self._marks[own::count]))
            meet()

    def _table(self, path, mark):
        """(where the samples of a shard lie, how many are left out, what is wrong with it)."""
        made_of = json.dumps([path, *mark, self._kind.made_by()])
        name = hashlib.blake2b(made_of.encode()).hexdigest()[:24] + ".npz"
        kept = None if self._index is None else joined(self._index, name)
        store = None if kept is None else Store(kept)
        if store is not None and store.exists(kept):
            with np.load(io.BytesIO(store.read(kept))) as saved:
                notes = json.loads(str(saved["notes"]))
                table = {n: saved[n] for n in saved.files if n != "notes"}
            return table, notes["left_out"], notes["problem"]
        table, left_out, problem = self._kind.scan(path, mark[0])
        if store is not None:
            notes = json.dumps({"left_out": left_out, "problem": problem, "made_of": made_of})
            file = io.BytesIO()
            np.savez(file, notes=notes, **table)
            store.write(kept, file.getvalue())
        return table, left_out, problem

    def _check(self, broken, allowed):
        lines = [f"{last_of(path)}: {why}" for path, why in broken]
        shown = "; ".join(lines[:_NAMED]) + ("; …" if len(lines) > _NAMED else "")
        share = len(broken) / len(self.paths)
        if share > allowed:
            raise SdjaxError(
                f"{len(broken)} of {len(self.paths)} shards are damaged, more than the share "
                f"max_broken_share={allowed:g} allows: mend or remove them, or raise the share. "
                f"{shown}"
            )
        for line in lines:
            _log.warning("a damaged shard is read as far as it goes: %s", line)
        if not len(self):
            rest = f": {self._filter} leaves none of {self.left_out}" if self.left_out else ""
            raise SdjaxError(f"{self.pattern} has no sample that can be used{rest}")
        if self._filter:
            _log.warning("%s: the filters leave %d of %d samples", self.pattern, len(self),
                         len(self) + self.left_out)


def _paths(store, pattern, ending, split):
    """The shards that a pattern names, or that lie in a folder. ending: what their names match."""
    pattern = os.fspath(pattern)
    if not store.remote:
        pattern = os.path.expanduser(pattern)
    if not re.search(ending, pattern):
        return _of_split(store, pattern, ending, split)
    if "*" in pattern or "?" in pattern:
        raise SdjaxError(f"{pattern}: give the folder, or numbers as {{0000..0099}}, not * or ?")
    return expanded(pattern)


def _of_split(store, folder, ending, split):
    found = [p for p in store.find(folder) if re.search(ending, p)
             and not last_of(p).startswith((".", "_"))]
    if not found:
        raise SdjaxError(f"expected a folder of shards, or their names with {{0000..0099}}, found "
                         f"none at {folder}: names that end in {ending.strip('$')}")
    length = os.path.commonprefix([os.path.dirname(path) + "/" for path in found]).rfind("/") + 1
    named = re.compile(rf"(^|[-_./]){re.escape(split)}[-_./]")
    own = [path for path in found if named.search(path[length:])]
    if not own and split != "train":
        raise SdjaxError(f"{folder} has no shard whose name says the split {split!r}")
    if 0 < len(own) < len(found):
        _log.warning("%s: %d shards of the split %s are read, %d others are not", folder, len(own),
                     split, len(found) - len(own))
    return own or found
