"""Buckets: each item once an epoch, whatever is left over, and after a resume."""

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.training import ArrayBatches
from sdjax.training.loop.bucket_feed import BucketBatches

SIZES = (7, 12, 1, 5)


def buckets():
    starts = np.cumsum([0, *SIZES])
    return [
        {"number": np.arange(start, start + size), "image": np.zeros((size, 2, width, 1), np.uint8)}
        for width, (start, size) in enumerate(zip(starts, SIZES), 1)
    ]


def epochs(batches, count):
    """What each of so many batches holds."""
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize(("size", "group"), [(2, 1), (3, 1), (2, 2)])
def test_no_item_is_lost_or_comes_twice_in_three_epochs(size, group):
    whole = sum(3 * n // (size * group) * group for n in SIZES)
    drawn = epochs(BucketBatches(buckets(), size, 0, group=group), whole)
    for batch in drawn:
        assert batch["image"].shape[0] == size
    for first in range(0, whole, group):
        assert len({batch["image"].shape for batch in drawn[first:first + group]}) == 1
    for width, own in enumerate(buckets(), 1):
        seen = np.concatenate([
            batch["number"] for batch in drawn if batch["image"].shape[2] == width] or [[]])
        count = len(own["number"])
        assert len(seen) == 3 * count // (size * group) * size * group
        for epoch in range(3):  # each a permutation, the last one as far as it goes
            part = seen[epoch * count:(epoch + 1) * count]
            assert len(set(part)) == len(part) and set(part) <= set(own["number"])


def test_a_resume_goes_on_at_every_place():
    whole = epochs(BucketBatches(buckets(), 2, 3, group=2), 40)
    for place in range(0, 40, 3):
        first = BucketBatches(buckets(), 2, 3, group=2)
        epochs(first, place)
        again = BucketBatches(buckets(), 2, 3, group=2)
        again.set_state(first.get_state())
        for expected, found in zip(whole[place:place + 5], epochs(again, 5), strict=False):
            np.testing.assert_array_equal(expected["number"], found["number"])


def test_buckets_are_mixed_and_epochs_differ():
    batches = BucketBatches(buckets(), 1, 0)
    first, second = ([b["image"].shape[2] for b in epochs(batches, sum(SIZES))] for _ in range(2))
    assert sorted(first) == sorted(second) and first != second != sorted(second)


def test_items_that_come_repeatedly():
    own = {"number": np.arange(3)}
    batches = ArrayBatches(own, 5, 0, items=np.array([0, 1, 1, 1, 2]))
    assert sorted(next(batches)["number"]) == [0, 1, 1, 1, 2]
    with pytest.raises(SdjaxError, match="no buckets"):
        BucketBatches([], 1, 0)
