"""Batches of several shapes, each batch of one: the order of aspect-ratio buckets."""

import numpy as np

from sdjax.errors import SdjaxError

from .feed import ArrayBatches


class BucketBatches:
    """Endless batches of buckets, every item once an epoch.

    buckets: for each, a dict of arrays [N, …] as `ArrayBatches` takes it; the buckets' arrays have
      one set of names and shapes of their own. items: for each bucket int [n], what an epoch draws,
      or None for all.
    group: so many batches that follow one another are of one bucket, for calls that take several.

    In epoch e a bucket gives as many whole groups as its items of the epoch and those left over
    before make; what is left then comes first in the next. The groups' order is drawn from
    (seed, e), and each bucket's items from a seed of its own.
    """

    def __init__(self, buckets, batch_size, seed, flip=False, group=1, items=None):
        if not buckets:
            raise SdjaxError("there are no buckets to draw from")
        items = items or [None] * len(buckets)
        self._streams = [
            ArrayBatches(arrays, batch_size, (seed, number), flip, items=own)
            for number, (arrays, own) in enumerate(zip(buckets, items, strict=True))
        ]
        self._sizes = np.array([stream.epoch_size for stream in self._streams])
        self._unit, self._group = batch_size * group, group
        self._batch_size, self._seed = batch_size, seed
        self._batch = 0  # batches given so far
        self._place(0)

    def __iter__(self):
        return self

    def __next__(self):
        while self._batch >= self._end:
            self._begin(self._epoch + 1, self._end)
        bucket = self._order[(self._batch - self._first) // self._group]
        self._batch += 1
        return next(self._streams[bucket])

    def _counts(self, epoch):
        """Groups of each bucket before this epoch."""
        return epoch * self._sizes // self._unit

    def _begin(self, epoch, first):
        counts = self._counts(epoch + 1) - self._counts(epoch)
        order = np.repeat(np.arange(len(counts)), counts)
        self._order = np.random.default_rng((self._seed, epoch)).permutation(order)
        self._epoch, self._first = epoch, first
        self._end = first + len(self._order) * self._group

    def _place(self, batch):
        """Goes to where `batch` batches have been given."""
        self._begin(0, 0)
        while self._end <= batch:
            self._begin(self._epoch + 1, self._end)
        done = batch - self._first
        given = np.bincount(self._order[:done // self._group], minlength=len(self._sizes))
        batches = (self._counts(self._epoch) + given) * self._group
        if done % self._group:
            batches[self._order[done // self._group]] += done % self._group
        for stream, count in zip(self._streams, batches, strict=True):
            stream.set_state({"drawn": int(count) * self._batch_size})
        self._batch = batch

    def get_state(self):
        """The position, as JSON: items drawn so far."""
        return {"drawn": self._batch * self._batch_size}

    def set_state(self, state):
        """Go to a position that get_state gave."""
        self._place(state["drawn"] // self._batch_size)
