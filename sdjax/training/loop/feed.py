"""Batches on their way to the devices: drawn, stacked and put there ahead of the step."""

import queue
import threading

import jax
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.parallel import COPIES


class ArrayBatches:
    """Endless batches gathered from a set held in memory, the order of a shuffled epoch each time.

    arrays: dict of NumPy arrays [N, …]; a batch is a dict of [batch_size, …]. Epoch e has the
    order drawn from (seed, e), so the position is a single number. A batch may run over the end of
    an epoch into the next. With flip, "image" [N, H, W, C] is mirrored half of the time, by a coin
    that is drawn with the order.

    seed: an int or a tuple of them.
    items: int [n], what an epoch draws, some perhaps repeatedly; None for each once.
    lessons: pairs (indices int [n], examples int). So many items are drawn from those of the
    indices alone, in epochs of their own, lesson after lesson and then all. "lesson" int32
    [batch_size] then says which lesson an item belongs to; len(lessons) after the last.
    """

    def __init__(self, arrays, batch_size, seed, flip=False, lessons=(), items=None):
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1 or not min(sizes.values()):
            raise SdjaxError(f"arrays of one length, not empty, are expected, got {sizes}")
        if flip and "image" not in arrays:
            raise SdjaxError(f"flip mirrors the array 'image', there are {', '.join(arrays)}")
        if not all(len(items) for items, _ in lessons):
            raise SdjaxError("a lesson has no items")
        self._arrays = arrays
        self._items = [*(np.asarray(items, int) for items, _ in lessons),
                       np.arange(min(sizes.values())) if items is None else np.asarray(items)]
        self._starts = np.cumsum([0, *(examples for _, examples in lessons)])
        self._batch_size, self._seed, self._flip = batch_size, seed, flip
        self._position = 0
        self._shuffled = None

    def __iter__(self):
        return self

    def __next__(self):
        parts, coins, wanted = [], [], self._batch_size
        while wanted:
            offset, end = self._shuffle(wanted)
            parts.append(self._order[offset:end])
            coins.append(self._coins[offset:end])
            wanted -= len(parts[-1])
            self._position += len(parts[-1])
        index = np.concatenate(parts)
        batch = {name: array[index] for name, array in self._arrays.items()}
        if len(self._items) > 1:
            places = self._position - self._batch_size + np.arange(self._batch_size)
            batch["lesson"] = self._lesson(places).astype(np.int32)
        if self._flip:
            mirrored = np.concatenate(coins)
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        return batch

    def _shuffle(self, wanted):
        """Order the epoch that the position lies in; where in it the next items begin and end."""
        lesson = self._lesson(self._position)
        items = self._items[lesson]
        epoch, offset = divmod(self._position - self._starts[lesson], len(items))
        if (lesson, epoch) != self._shuffled:
            seeds = self._seed if isinstance(self._seed, tuple) else (self._seed,)
            random = np.random.default_rng((*seeds, epoch))
            self._order = items[random.permutation(len(items))]
            self._coins = random.integers(2, size=len(items), dtype=bool)
            self._shuffled = lesson, epoch
        left = self._starts[lesson + 1:lesson + 2] - self._position  # none in the last part
        return offset, offset + min([wanted, *left])

    def _lesson(self, position):
        return np.searchsorted(self._starts, position, side="right") - 1

    @property
    def epoch_size(self) -> int:
        """Items that an epoch draws, once the lessons are over."""
        return len(self._items[-1])

    def get_state(self):
        """The position, as JSON: items drawn so far."""
        return {"drawn": self._position}

    def set_state(self, state):
        """Go to a position that get_state gave."""
        self._position = state["drawn"]


class Feed:
    """Iterates (device batch, position) over `batches`, some calls ahead in a thread of its own.

    batches: an iterator of trees of arrays [batch, …], with get_state and set_state. Where it has
      `rows`, a batch is only these rows of one of `batch_size`, as this process's devices need.
    leading: (steps_per_call, accumulation); that many batches are stacked for one call.
    place: where they go, see `sdjax.parallel.Placement`.
    position: what batches.get_state gave right after the call's last batch was drawn, so that a
      checkpoint says where the *used* data ends, not where the thread has got to.
    """

    def __init__(self, batches, leading, place=COPIES, ahead=2):
        self._batches, self._leading, self._place = batches, leading, place
        self._queue = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="sdjax-feed", daemon=True)
        self._thread.start()

    def _draw(self):
        try:
            while not self._stopped.is_set():
                self._put((self._next(), self._batches.get_state()))
        except BaseException as error:  # handed to the consumer, who raises it
            self._put(error)

    def _next(self):
        count = int(np.prod(self._leading, dtype=int))
        drawn = [next(self._batches) for _ in range(count)]
        whole = drawn[0] if count == 1 else jax.tree.map(lambda *x: np.concatenate(x), *drawn)
        rows = getattr(self._batches, "rows", None)
        if rows is None:
            return self._place.batch(whole, self._leading)
        return self._place.batch(whole, self._leading, (rows, self._batches.batch_size))

    def _put(self, item):
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __iter__(self):
        return self

    def __next__(self):
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self):
        """Stop the thread."""
        self._stopped.set()
        self._thread.join()
