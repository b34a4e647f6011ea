"""Sets larger than memory: what is read of shards, in what order, and what is told of bad ones."""

import dataclasses
import io
import itertools
import json
import logging
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from sdjax.data import DataConfig, loader, open_source
from sdjax.data.order import Order
from sdjax.errors import SdjaxError
from sdjax.stores import expanded
from tests.data.shards import number_of, picture, samples, tar_bytes, write_tars

SIZES = (7, 5, 11, 2)
COUNT = sum(SIZES)


def config(source, **options):
    return DataConfig(source, image_size=8, **{"window": 4, "streams": 4, **options})


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("data") / "tars", SIZES)


def parquet(folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    first = 0
    for shard, size in enumerate(SIZES):
        rows = range(first, first + size)
        table = pa.table({
            "image": [{"bytes": picture(n), "path": f"{n}.png"} for n in rows],
            "caption": [f"picture {n}" for n in rows], "similarity": [n / COUNT for n in rows],
            "width": [8] * size, "height": [8] * size,
        })
        pq.write_table(table, folder / f"train-{shard:05}-of-00004.parquet", row_group_size=3)
        first += size
    return f"parquet:{folder}"


def varint(value):
    data = b""
    while value >= 0x80:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def tf_example(features):
    """A tf.train.Example, as the format says it."""
    def feature(value):
        if isinstance(value, bytes):
            return field(1, field(1, value))
        if isinstance(value, float):
            return field(2, field(1, np.float32(value).tobytes()))
        return field(3, field(1, varint(value % 2**64)))

    entries = [field(1, field(1, n.encode()) + field(2, feature(v))) for n, v in features.items()]
    return field(1, b"".join(entries))


def records(folder):
    module = pytest.importorskip("array_record.python.array_record_module")
    first = 0
    for shard, size in enumerate(SIZES):
        writer = module.ArrayRecordWriter(str(folder / f"{shard:05}.array_record"), "group_size:1")
        for n in range(first, first + size):
            writer.write(tf_example({
                "image": picture(n), "caption": f"picture {n}".encode(), "similarity": n / COUNT,
                "negative": -n,
            }))
        writer.close()
        first += size
    return f"array_record:{folder}"


def tar(folder):
    return f"tar:{write_tars(folder, SIZES, more=lambda n: dict(similarity=n / COUNT))}"


@pytest.mark.parametrize("make", [parquet, records, tar])
def test_samples_of_each_kind_and_their_filters(tmp_path, make):
    name = make(tmp_path)
    source = open_source(config(name))
    assert source.sizes == list(SIZES) and len(source) == COUNT
    for n in range(COUNT):
        assert source[n]["caption"] == f"picture {n}" and number_of(source[n]["image"]) == n
    fewer = open_source(config(name, keep=("similarity>=0.5", "similarity<0.9")))
    wanted = [f"picture {n}" for n in range(COUNT) if 0.5 <= n / COUNT < 0.9]
    assert [fewer[i]["caption"] for i in range(len(fewer))] == wanted
    with pytest.raises(SdjaxError, match="leaves none of 25|no column 'unknown'"):
        open_source(config(name, keep=("unknown>0",)))
    with pytest.raises(SdjaxError, match="leaves none of 25"):
        open_source(config(name, smallest=9))


def test_an_example_of_tensorflow_datasets_is_read():
    from sdjax.data.record_shards import example

    known = example(tf_example({"a": b"x", "b": -5, "c": 0.25}))
    assert known == {"a": b"x", "b": -5, "c": 0.25}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_every_kind_and_long_names(tmp_path, form):
    long = "a/" * 30 + "b" * (150 if form != tarfile.USTAR_FORMAT else 50)
    known = [{**sample, "__key__": f"{long}-{i}"} for i, sample in enumerate(samples(0, 3))]
    (tmp_path / "x.tar").write_bytes(tar_bytes(known, form))
    source = open_source(config(f"tar:{tmp_path}"))
    assert [source[i]["caption"] for i in range(3)] == [f"picture {i}" for i in range(3)]


def test_captions_from_json_sizes_without_it_and_aspects(tmp_path):
    known = samples(0, 6, size=lambda n: (8, 8 + 8 * n), kind="JPEG")
    for sample in known[:3]:
        del sample["json"]
    for sample in known[3:]:
        del sample["txt"]
    (tmp_path / "0.tar").write_bytes(tar_bytes(known))
    source = open_source(config(f"tar:{tmp_path}", max_aspect=4.0))
    assert [source[i]["caption"] for i in range(len(source))] == [
        f"picture {i}" for i in range(4)]
    other = open_source(config(f"tar:{tmp_path}", caption_key="width", require_captions=False))
    assert other[5]["caption"] == ""


def test_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    whole = Image.fromarray(noise).resize((480, 400), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=95)
    (tmp_path / "0.tar").write_bytes(tar_bytes([{"__key__": "0", "jpg": file.getvalue(),
                                                 "txt": b"x"}]))
    source = open_source(dataclasses.replace(config(f"tar:{tmp_path}"), image_size=64))
    assert source.raw[0]["image"].shape == (200, 240, 3)
    exact = np.asarray(Image.open(file).crop((40, 0, 440, 400)).resize((64, 64),
                       Image.Resampling.LANCZOS)).astype(float)
    error = np.mean((source[0]["image"] - exact) ** 2)
    assert 10 * np.log10(255**2 / error) > 38


def epochs_of(batches, count, size, epochs):
    """Numbers in the order in which they are drawn."""
    found = []
    while len(found) < epochs * count:
        found += [int(text.split()[1]) for text in next(batches)["caption"]]
    return found[:epochs * count]


@pytest.mark.parametrize("size", [4, 6])
def test_every_epoch_has_every_sample_once_in_another_order(tars, size):
    setting = config(f"tar:{tars}")
    source = open_source(setting)
    numbers = epochs_of(loader(source, setting, 4), COUNT, size, 4)
    orders = [numbers[e * COUNT:(e + 1) * COUNT] for e in range(4)]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    again = epochs_of(loader(source, dataclasses.replace(setting, threads=3), 4), COUNT, size, 4)
    assert again == numbers
    plain = loader(source, setting, 4, shuffle=False, repeat=False)
    assert [int(t.split()[1]) for b in plain for t in b["caption"]] == list(range(COUNT))


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_the_batches_of_one_and_go_on_as_another_number(tars, hosts):
    setting = config(f"tar:{tars}", flip=True)
    source = open_source(setting)
    whole, size = loader(source, setting, 6), 6
    each = size // hosts
    parts = [loader(source, setting, 6, rows=range(h * each, (h + 1) * each))
             for h in range(hosts)]
    for _ in range(6):
        one, shares = next(whole), [next(part) for part in parts]
        for key in one:
            np.testing.assert_array_equal(one[key], np.concatenate([s[key] for s in shares]))
    state = json.loads(json.dumps(parts[0].get_state()))
    assert state == whole.get_state() == {"drawn": 36}
    alone = loader(source, setting, 6)
    alone.set_state(state)
    np.testing.assert_array_equal(next(alone)["caption"], next(whole)["caption"])
    np.testing.assert_array_equal(
        next(loader(source, setting, 6, process_index=1, process_count=2))["caption"],
        next(loader(source, setting, 6))["caption"][1::2])


def test_a_host_reads_a_share_of_the_shards():
    order = Order([100] * 64, 0, window=10, streams=16)
    rows = order.rows(32)
    assert sorted(rows) == list(range(32))
    shards = [{order.at(32 * k + int(p)) // 100 for k in range(180) for p in rows[h::1][:16]}
              for h in (0, 16)]
    assert all(len(found) <= 33 for found in shards)  # a half, and one that both read


def none_lost_none_twice(count, sizes, batch, hosts, epochs, window, streams):
    """Positions of a sequence over hosts, stopped in the middle and gone on as one more host."""
    order, places = Order(sizes, 3, window, streams), None
    places = order.rows(batch)
    seen = np.zeros(count, np.int32)
    steps = count * epochs // batch
    for k in range(steps):
        of = hosts if k < steps // 2 else 1
        shares = [places[h * batch // of:(h + 1) * batch // of] for h in range(of)]
        for place in itertools.chain(*shares):
            seen[order.at(k * batch + int(place))] += 1
    return seen


def test_none_is_lost_and_none_twice_over_two_hosts_and_three_epochs():
    sizes = np.random.default_rng(0).integers(0, 90, 200)
    count = int(sizes.sum())
    batch = next(b for b in (6, 5, 4, 3, 2) if count % b == 0) if count % 8 else 8
    seen = none_lost_none_twice(count, sizes, batch, 2, 3, 64, 16)
    assert (seen == 3).all()


@pytest.mark.full
def test_none_of_a_million_is_lost_over_two_hosts_with_a_resume(tmp_path):
    def array(n):
        file = io.BytesIO()
        np.save(file, np.int32(n))
        return file.getvalue()

    count = 1_000_000
    for shard in range(100):
        known = [{"__key__": f"{n:07}", "number.npy": array(n)}
                 for n in range(shard * 10_000, (shard + 1) * 10_000)]
        (tmp_path / f"{shard:05}.tar").write_bytes(tar_bytes(known))
    setting = DataConfig(f"encoded:{tmp_path}", require_captions=False, threads=0)
    batch, seen = 1000, np.zeros(count, np.int32)
    source = open_source(setting, tmp_path / "index")
    assert len(source) == count
    state = {"drawn": 0}
    for start, stop, hosts in ((0, 1300, 2), (1300, 3000, 1)):
        each = batch // hosts
        parts = [loader(source, setting, batch, rows=range(h * each, (h + 1) * each))
                 for h in range(hosts)]
        for part in parts:
            part.set_state(state)
        for _ in range(start, stop):
            for part in parts:
                np.add.at(seen, next(part)["number"], 1)
        state = json.loads(json.dumps(parts[0].get_state()))
    assert (seen == 3).all()


def test_remote_shards_are_the_same_and_come_in_blocks(tars, monkeypatch):
    memory = fsspec.filesystem("memory")
    for path in sorted(tars.glob("*.tar")):
        memory.pipe_file(f"/shards-read/{path.name}", path.read_bytes())
    calls = []
    cat = type(memory).cat_file
    monkeypatch.setattr(type(memory), "cat_file",
                        lambda self, *a, **k: calls.append(a) or cat(self, *a, **k))
    setting = config("tar:memory://shards-read/{00000..00003}.tar")
    remote = open_source(setting, "memory://shards-index")
    near = open_source(config(f"tar:{tars}"))
    numbers = epochs_of(loader(remote, setting, 5), COUNT, 5, 1)
    assert numbers == epochs_of(loader(near, setting, 5), COUNT, 5, 1)
    assert len([c for c in calls if str(c[0]).endswith(".tar")]) == len(SIZES)
    calls.clear()
    again = open_source(setting, "memory://shards-index")
    assert again.sizes == remote.sizes and not [c for c in calls if str(c[0]).endswith(".tar")]


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda data: data[:len(data) // 2], "cut short at byte"),
    (lambda data: data[:3000] + b"?" * 40000, "damaged at byte|cut short"),
    (lambda data: b"", "empty"),
])
def test_a_damaged_shard_is_refused_or_told(tmp_path, caplog, damage, reason):
    write_tars(tmp_path, SIZES)
    shard = tmp_path / "00002.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(SdjaxError, match=f"1 of 4 shards.*max_broken_share.*00002.tar: .*{reason}"):
        open_source(config(f"tar:{tmp_path}"))
    with caplog.at_level(logging.WARNING):
        source = open_source(config(f"tar:{tmp_path}", max_broken_share=0.25))
    assert len([line for line in caplog.messages if "00002.tar" in line]) == 1
    assert source.sizes[0] == 7 and source.sizes[2] < 11
    assert [source[i]["caption"] for i in range(7)] == [f"picture {i}" for i in range(7)]


def test_a_shard_that_is_absent_or_vanishes_is_one_line(tmp_path):
    write_tars(tmp_path, SIZES)
    with pytest.raises(SdjaxError, match="there is no shard .*00004.tar"):
        open_source(config(f"tar:{tmp_path}/{{00000..00004}}.tar"))
    setting = config(f"tar:{tmp_path}", threads=0)
    source = open_source(setting)
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(SdjaxError, match="00001.tar is not there, or no longer: put it back"):
        epochs_of(loader(source, setting, 5), COUNT, 5, 1)


def test_a_broken_picture_gives_way_to_the_next_of_its_shard_on_any_number_of_hosts(tmp_path):
    known = samples(0, 12)
    known[4]["png"] = known[4]["png"][:30]
    (tmp_path / "0.tar").write_bytes(tar_bytes(known))
    setting = config(f"tar:{tmp_path}", max_broken_share=0.5)
    source = open_source(setting)
    numbers = epochs_of(loader(source, setting, 4), 12, 4, 1)
    assert sorted(numbers) == sorted([*(n for n in range(12) if n != 4), 5])
    parts = [loader(source, setting, 4, rows=rows) for rows in (range(2), range(2, 4))]
    shares = [text for _ in range(3) for part in parts for text in next(part)["caption"]]
    assert [int(text.split()[1]) for text in shares] == numbers
    assert list(source.broken) == [source.name(4)] and "0.tar sample 4 at byte" in source.name(4)


@pytest.mark.parametrize(("options", "message"), [
    ({"source": "tar:/nowhere/at/all"}, "found none at /nowhere/at/all"),
    ({"source": "tar:/nowhere/*.tar"}, "give the folder"),
    ({"source": "shapes", "smallest": 4}, "are for tar:"),
    ({"source": "tar:nosuch://x"}, "fsspec knows no such kind"),
])
def test_what_cannot_be_read_is_refused(options, message):
    with pytest.raises(SdjaxError, match=message):
        open_source(DataConfig(**options))


def test_conditions_and_patterns():
    with pytest.raises(SdjaxError, match="'similarity' is no condition"):
        DataConfig(keep=("similarity",))
    assert expanded("a{08..10}-{0..1}.tar") == [
        f"a{n:02}-{m}.tar" for n in (8, 9, 10) for m in (0, 1)]
    with pytest.raises(SdjaxError, match="backwards"):
        expanded("a{3..1}.tar")


def test_a_package_that_is_missing_is_one_line(monkeypatch):
    import sys

    for name in ("pyarrow.parquet", "array_record.python"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for source, package in (("parquet:x", "pyarrow"), ("array_record:x", "array_record"),
                            ("tar:gs://bucket/x", "gcsfs")):
        with pytest.raises(SdjaxError, match=f"pip install {package}"):
            open_source(DataConfig(source))
