"""Batches from a source: shuffled, sharded, read ahead, and resumable at the exact next batch."""
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np

from sdjax.data.config import DataConfig
from sdjax.data.images import to_float
from sdjax.data.order import Order
from sdjax.data.source import stack
from sdjax.errors import SdjaxError

_BATCHES_AHEAD = 2  # read, not yet put together
_NEIGHBOURS = 64  # that may take the place of a broken item


def loader(
    source,
    config: DataConfig,
    batch_size: int,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
    *,
    shuffle: bool = True,
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | None = None,
):
    """An iterator of batches.

    A batch has "image" float32 [b, size, size, 3] in [-1, 1]; "caption" str [b], or, where
    `tokenize` is given, "ids" = tokenize(captions), int32 [b, length]; "label" int [b] where
    the source has labels; and what else its items have. b is batch_size / process_count.

    The order depends on `config.seed` alone, and is another in every epoch. `get_state()` gives the
    position as a dictionary that JSON can hold, and `set_state(state)` goes there: the next batch
    is the one that would have come. With n processes, batch k of all together holds the items of
    batch k of one, as long as nothing is broken.

    Of a source of shards, which has `sizes`, the order is that of `sdjax.data.order`, and the place
    of a broken item is taken by the next whole one of its shard, so that the batches of n processes
    are those of one with broken items too.

    Args:
      source: items by index, None for those to be skipped (`sdjax.data.open_source`).
      config: its seed, flip, threads, window and streams count here.
      batch_size: pictures in a batch, over all processes.
      shuffle: False keeps the source's order.
      repeat: False ends after one epoch, with a smaller last batch where the items do not fill it.
      rows: those of each batch of all processes that this one draws, in place of every n-th.

    Raises:
      SdjaxError: where the batch cannot be shared out among the processes, or the source is empty.
    """
    if batch_size % process_count:
        raise SdjaxError(
            f"batch_size {batch_size} cannot be shared by {process_count} processes; "
            f"choose a multiple of {process_count}"
        )
    if not len(source):
        raise SdjaxError("the source is empty: there is nothing to make batches of")
    if rows is None and getattr(source, "sizes", None) is not None:
        rows = range(process_index, batch_size, process_count)
    if rows is not None:
        return SharedBatches(source, config, batch_size, rows, tokenize, shuffle, repeat)
    items = _arranged(source, config, shuffle, repeat)[process_index::process_count]
    if config.flip:
        items = items.random_map(_flip)
    return iter(_batches(items, config, batch_size // process_count, tokenize, repeat))


def _arranged(source, config, shuffle, repeat):
    items = grain.MapDataset.source(source).seed(config.seed)
    if shuffle:
        items = items.shuffle()
    return items.repeat() if repeat else items


def _batches(items, config, size, tokenize, whole):
    options = grain.ReadOptions(
        num_threads=config.threads,
        prefetch_buffer_size=_BATCHES_AHEAD * size if config.threads else 0,
    )
    return items.to_iter_dataset(options).batch(
        size, drop_remainder=whole, batch_fn=lambda items: _batch(items, tokenize)
    )


class SharedBatches:
    """Some rows of each batch that several processes draw together, as `loader` says.

    rows: int [b], the same number for all processes.
    """

    def __init__(self, source, config, batch_size, rows, tokenize=None, shuffle=True, repeat=True):
        self.rows, self.batch_size = np.asarray(rows), batch_size
        self._config, self._tokenize, self._repeat = config, tokenize, repeat
        self._sequence = _Sequence(source, config, batch_size, shuffle, repeat)
        self.set_state({"drawn": 0})

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._iterator)
        self._drawn += self.batch_size
        return batch

    def get_state(self):
        """The position, as JSON: items drawn so far by all processes."""
        return {"drawn": self._drawn}

    def set_state(self, state):
        """Go to a position that get_state gave."""
        if "drawn" not in state:
            raise SdjaxError(
                "the checkpoint's position is that of a loader of another kind: train into another "
                "folder, or on as many processes as before"
            )
        first = state["drawn"] // self.batch_size
        self._drawn = first * self.batch_size
        share = _Share(self._sequence, self.rows, first)
        items = grain.MapDataset.source(share)
        self._iterator = iter(_batches(
            items, self._config, len(self.rows), self._tokenize, self._repeat
        ))


class _Share:
    """The items of some rows of each batch, from batch `first` on, by index."""

    def __init__(self, sequence, rows, first):
        self._sequence, self._rows, self._first = sequence, rows, first
        if sequence.length is None:
            self._length = sys.maxsize // 2
        else:
            whole, rest = divmod(sequence.length, sequence.batch_size)
            self._length = max(0, (whole - first) * len(rows) + int((rows < rest).sum()))

    def __len__(self):
        return self._length

    def __getitem__(self, number):
        batch, row = divmod(number, len(self._rows))
        return self._sequence.item(self._first + batch, int(self._rows[row]))


class _Sequence:
    """The items of all batches, each by its batch and row. length: None without an end."""

    def __init__(self, source, config, batch_size, shuffle, repeat):
        self._source, self._flip, self._seed = source, config.flip, config.seed
        self.batch_size, self.length = batch_size, None if repeat else len(source)
        self._places, self._order, self._items = np.arange(batch_size), None, None
        sizes = getattr(source, "sizes", None)
        if sizes is None:
            self._items = _arranged(source, config, shuffle, repeat)
        else:
            self._order = Order(sizes, config.seed, config.window, config.streams)
            if shuffle and repeat:
                self._places = self._order.rows(batch_size)
        self._shuffle = shuffle

    def item(self, batch, row):
        position = batch * self.batch_size + int(self._places[row])
        item = self._whole(position)
        if self._flip:
            item = _flip(item, np.random.default_rng((self._seed, position)))
        return item

    def _whole(self, position):
        index = None
        if self._order is not None:
            index = self._order.at(position) if self._shuffle else position % len(self._source)
        for step in range(_NEIGHBOURS):
            if index is None:
                item = self._items[position + step]
            else:
                item = self._source[self._order.neighbour(index, step)]
            if item is not None:
                return item
        raise SdjaxError(f"of {_NEIGHBOURS} items in turn, from that of place {position} on, none "
                         "is whole: look at the warnings above")


def _batch(items, tokenize):
    batch = stack(items)
    if "image" in batch:
        batch["image"] = to_float(batch["image"])
    if tokenize is not None:
        batch["ids"] = np.asarray(tokenize(batch.pop("caption").tolist()), np.int32)
    return batch


def _flip(item, rng):
    if item is None or rng.integers(2):
        return item
    return item | {"image": item["image"][:, ::-1]}
