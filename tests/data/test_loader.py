import dataclasses
import json
import time

import numpy as np
import pytest

from sdjax.data import DataConfig, loader, open_source
from sdjax.data.source import Source
from sdjax.errors import SdjaxError


class Numbers:
    """Item i is a picture whose pixels and caption are i; multiples of `gap` are broken."""

    def __init__(self, length, gap=None):
        self.length, self.gap = length, gap

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.gap and index % self.gap == 0:
            return None
        image = np.full((4, 4, 3), index, np.uint8)
        image[:, 0] = 255 - index
        return {"image": image, "caption": str(index), "label": index % 3}


CONFIG = DataConfig(image_size=4)


def captions(batches):
    return [caption for batch in batches for caption in batch["caption"]]


def taken(iterator, number):
    return [next(iterator) for _ in range(number)]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_a_batch():
    batch = next(loader(open_source(DataConfig()), DataConfig(), 8))
    assert batch["image"].shape == (8, 64, 64, 3) and batch["image"].dtype == np.float32
    assert -1 <= batch["image"].min() < -0.5 and 0.5 < batch["image"].max() <= 1
    assert batch["caption"].shape == (8,) and " background" in batch["caption"][0]


def test_tokenized_captions_and_labels():
    seen = []

    def tokenize(texts):
        seen.append(texts)
        return [[int(text), 0] for text in texts]

    batch = next(loader(Numbers(8), CONFIG, 4, tokenize, shuffle=False))
    assert isinstance(seen[0], list) and seen[0] == ["0", "1", "2", "3"]
    assert batch["ids"].dtype == np.int32 and batch["ids"][:, 0].tolist() == [0, 1, 2, 3]
    assert batch["label"].tolist() == [0, 1, 2, 0] and "caption" not in batch


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_order_depends_on_the_seed_alone(threads):
    config = dataclasses.replace(CONFIG, threads=threads)
    first = captions(taken(loader(Numbers(20), config, 4), 12))
    assert first == captions(taken(loader(Numbers(20), CONFIG, 4), 12))
    other = dataclasses.replace(config, seed=1)
    assert first != captions(taken(loader(Numbers(20), other, 4), 12))


def test_every_epoch_holds_everything_in_another_order():
    texts = captions(taken(loader(Numbers(20), CONFIG, 4), 15))
    epochs = [texts[:20], texts[20:40], texts[40:]]
    assert all(sorted(epoch, key=int) == [str(i) for i in range(20)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("gap", [None, 3])
def test_the_position_is_restored_at_the_exact_next_batch(threads, gap):
    config = dataclasses.replace(CONFIG, threads=threads, flip=True)
    iterator = loader(Numbers(30, gap), config, 4)
    taken(iterator, 11)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = taken(iterator, 9)
    fresh = loader(Numbers(30, gap), config, 4)
    fresh.set_state(state)
    for first, second in zip(expected, taken(fresh, 9)):
        assert_same(first, second)
    iterator.set_state(state)
    assert_same(expected[0], next(iterator))


def test_broken_items_leave_batches_whole():
    batches = taken(loader(Numbers(30, gap=3), CONFIG, 4), 10)
    assert all(len(batch["caption"]) == 4 for batch in batches)
    assert sorted(captions(batches)[:20], key=int) == [str(i) for i in range(30) if i % 3]


def test_one_epoch_keeps_its_last_smaller_batch():
    batches = list(loader(Numbers(10), CONFIG, 4, shuffle=False, repeat=False))
    assert [len(batch["caption"]) for batch in batches] == [4, 4, 2]
    assert captions(batches) == [str(i) for i in range(10)]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_one(count):
    one = taken(loader(Numbers(30), CONFIG, 4), 9)
    shares = [
        taken(loader(Numbers(30), CONFIG, 4, process_index=index, process_count=count), 9)
        for index in range(count)
    ]
    for whole, parts in zip(one, zip(*shares)):
        assert all(len(part["caption"]) == 4 // count for part in parts)
        assert sorted(whole["caption"]) == sorted(captions(parts))


def test_flipping_mirrors_about_half_and_is_off_by_default():
    def mirrored(config):
        batches = taken(loader(Numbers(100), config, 4), 50)
        images = np.concatenate([batch["image"] for batch in batches])
        numbers = np.array(captions(batches), int)
        return (np.abs(images[:, 0, 0, 0] - (numbers / 127.5 - 1)) < 1e-6).mean()

    assert mirrored(CONFIG) == 0
    assert 0.35 < mirrored(dataclasses.replace(CONFIG, flip=True)) < 0.65


def test_cached_items_are_read_once():
    class Counting(Numbers):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    raw = Counting(10)
    source = Source(raw, 4, cache=6)
    taken(loader(source, dataclasses.replace(CONFIG, threads=0), 10), 3)
    assert raw.reads == 10 + 2 * 4


def test_a_source_that_breaks_down_stops_the_run():
    class Failing(Numbers):
        def __getitem__(self, index):
            raise RuntimeError("a bug, not a broken file")

    with pytest.raises(RuntimeError, match="a bug"):
        next(loader(Failing(10), CONFIG, 4))


@pytest.mark.parametrize("options, message", [
    ({"source": "shape"}, "unknown data source 'shape'.*shapes"),
    ({"source": "folder:"}, "unknown data source"),
    ({"cache": -1}, "cache must be at least 0"),
    ({"max_broken_share": 2}, "between 0 and 1"),
    ({"split": "test"}, "split must be one of train, heldout, all"),
])
def test_wrong_configurations_are_refused(options, message):
    with pytest.raises(SdjaxError, match=message):
        open_source(DataConfig(**options))


def test_wrong_shares_and_empty_sources_are_refused():
    with pytest.raises(SdjaxError, match="cannot be shared by 3 processes"):
        loader(Numbers(10), CONFIG, 4, process_count=3)
    with pytest.raises(SdjaxError, match="empty"):
        loader(Numbers(0), CONFIG, 4)


def test_drawing_and_loading_keep_up_with_training():
    config = DataConfig(objects="two")
    iterator = loader(open_source(config), config, 128)
    taken(iterator, 4)
    start = time.process_time()
    taken(iterator, 8)
    assert 8 * 128 / (time.process_time() - start) > 700
