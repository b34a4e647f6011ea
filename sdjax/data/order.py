"""The order in which shards are drawn from: shuffled in windows, the same for any number of hosts.
"""

from functools import lru_cache
from math import gcd

import numpy as np


class Order:
    """Which item stands where in an endless sequence of epochs, each with every item once.

    In epoch e the shards follow one another in an order of its own. That sequence is cut into
    `streams` runs of equal length, to within an item, from which is drawn in turn; in each the
    items change places within windows of `window`. So what is drawn at once lies together in
    files, and a host that wants a share of each batch reads a share of the shards. An item's place
    depends on the seed and the sizes alone.

    sizes: items of each shard.
    """

    def __init__(self, sizes, seed: int, window: int = 1024, streams: int = 16):
        self._sizes = np.asarray(sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.count = int(self._sizes.sum())
        self.streams = max(1, min(streams, self.count))
        self._window = max(1, window)
        self._seed = seed
        self._epoch = lru_cache(4)(self._shards)
        self._places = lru_cache(4 * self.streams + 4)(self._shuffled)

    def at(self, position: int) -> int:
        """The index of the item at a place of the sequence."""
        epoch, place = divmod(position, self.count)
        row, stream = divmod(place, self.streams)
        each, more = divmod(self.count, self.streams)
        begin = stream * each + min(stream, more)
        length = each + (stream < more)
        number, offset = divmod(row, self._window)
        size = min(self._window, length - number * self._window)
        place = begin + number * self._window + self._places(epoch, stream, number, size)[offset]
        shards, starts = self._epoch(epoch)
        at = int(np.searchsorted(starts, place, side="right")) - 1
        return int(self._starts[shards[at]] + place - starts[at])

    def neighbour(self, index: int, step: int) -> int:
        """The item `step` places after one, in its own shard."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        start, size = int(self._starts[shard]), int(self._sizes[shard])
        return start + (index - start + step) % size

    def rows(self, batch_size: int) -> np.ndarray:
        """Where in a batch's part of the sequence each of its rows stands, int [batch_size]: those
        of one stream together, as the devices of one host are.
        """
        groups = gcd(self.streams, batch_size)
        row = np.arange(batch_size)
        return row % (batch_size // groups) * groups + row // (batch_size // groups)

    def _shards(self, epoch):
        """The shards that hold anything in the order of an epoch, and where each begins."""
        shards = np.flatnonzero(self._sizes)
        shards = shards[np.random.default_rng((self._seed, epoch)).permutation(len(shards))]
        sizes = self._sizes[shards]
        return shards, np.cumsum(sizes) - sizes

    def _shuffled(self, epoch, stream, number, size):
        return np.random.default_rng((self._seed, epoch, stream, number)).permutation(size)
