"""Batches from a source: shuffled, sharded, read ahead, and resumable at the exact next batch."""
from collections.abc import Callable, Sequence

import grain
import numpy as np

from sdjax.data.config import DataConfig
from sdjax.data.images import to_float
from sdjax.data.source import stack
from sdjax.errors import SdjaxError

_BATCHES_AHEAD = 2  # read, not yet put together


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
) -> grain.DatasetIterator:
    """An iterator of batches.

    A batch has "image" float32 [b, size, size, 3] in [-1, 1]; "caption" str [b], or, where
    `tokenize` is given, "ids" = tokenize(captions), int32 [b, length]; and "label" int [b] where
    the source has labels. b is batch_size / process_count.

    The order depends on `config.seed` alone, and is another in every epoch. `get_state()` gives the
    position as a dictionary that JSON can hold, and `set_state(state)` goes there: the next batch
    is the one that would have come. With n processes, batch k of all together holds the items of
    batch k of one, as long as nothing is broken.

    Args:
      source: items by index, None for those to be skipped (`sdjax.data.open_source`).
      config: its seed, flip and threads count here.
      batch_size: pictures in a batch, over all processes.
      shuffle: False keeps the source's order.
      repeat: False ends after one epoch, with a smaller last batch where the items do not fill it.

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
    items = grain.MapDataset.source(source).seed(config.seed)
    if shuffle:
        items = items.shuffle()
    if repeat:
        items = items.repeat()
    items = items[process_index::process_count]
    if config.flip:
        items = items.random_map(_flip)
    share = batch_size // process_count
    options = grain.ReadOptions(
        num_threads=config.threads,
        prefetch_buffer_size=_BATCHES_AHEAD * share if config.threads else 0,
    )
    batches = items.to_iter_dataset(options).batch(
        share, drop_remainder=repeat, batch_fn=lambda items: _batch(items, tokenize)
    )
    return iter(batches)


def _batch(items, tokenize):
    batch = stack(items)
    batch["image"] = to_float(batch["image"])
    if tokenize is not None:
        batch["ids"] = np.asarray(tokenize(batch.pop("caption").tolist()), np.int32)
    return batch


def _flip(item, rng):
    if item is None or rng.integers(2):
        return item
    return item | {"image": item["image"][:, ::-1]}
