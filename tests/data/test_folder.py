import json

import numpy as np
import pytest
from PIL import Image

from sdjax.data import DataConfig, loader, open_source
from sdjax.data.folder import ImageFolder
from sdjax.data.images import crop_and_resize, decode_image, to_float, to_uint8
from sdjax.data.pictures import BrokenItem
from sdjax.errors import SdjaxError


def picture(path, colour, size=(20, 20), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def write_metadata(folder, *entries):
    lines = (e if isinstance(e, str) else json.dumps(e) for e in entries)
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def opened(folder, **options):
    return open_source(DataConfig(source=f"folder:{folder}", image_size=16, **options))


def test_captions_from_text_files(tmp_path):
    picture(tmp_path / "b.png", "red")
    (tmp_path / "b.txt").write_text("a red\n  picture – ä\n", encoding="utf-8")
    picture(tmp_path / "sub" / "a.jpg", "blue")
    (tmp_path / "sub" / "a.txt").write_text("a blue one")
    source = opened(tmp_path)
    assert [source[i]["caption"] for i in range(2)] == ["a red picture – ä", "a blue one"]
    assert source[0]["image"].shape == (16, 16, 3) and source[0]["image"].dtype == np.uint8
    assert tuple(source[0]["image"][8, 8]) == (255, 0, 0)


@pytest.mark.parametrize("key", ["text", "caption", "title"])
def test_captions_from_metadata(tmp_path, key):
    picture(tmp_path / "train" / "x" / "1.png", "red")
    picture(tmp_path / "train" / "0.png", "lime")
    write_metadata(
        tmp_path / "train", {"file_name": "x/1.png", key: "red"}, "",
        {"file_name": "./0.png", key: "green", "width": 3},
    )
    source = opened(tmp_path, caption_key="title" if key == "title" else None)
    assert [source[i]["caption"] for i in range(2)] == ["green", "red"]


def test_broken_truncated_and_nameless_files_are_named_counted_and_skipped(tmp_path, caplog):
    for i in range(8):
        picture(tmp_path / f"good{i}.png", (i * 30, 0, 0))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.webp").write_text("no picture at all")
    picture(tmp_path / "silent.png", "red")
    names = [f"good{i}.png" for i in range(8)] + ["cut.png", "empty.jpg", "text.webp", "gone.png"]
    write_metadata(
        tmp_path, *({"file_name": n, "text": n} for n in names), "{not json", {"text": "no file"},
        {"file_name": "silent.png", "text": " "},
    )
    source = opened(tmp_path, max_broken_share=0.5)
    assert set(source.broken) == {"gone.png", "metadata.jsonl line 13", "metadata.jsonl line 14"}
    config = DataConfig(image_size=16)
    batches = list(loader(source, config, 4, shuffle=False, repeat=False))
    captions = [c for batch in batches for c in batch["caption"]]
    assert captions == [f"good{i}.png" for i in range(8)]
    assert set(source.broken) == {
        "gone.png", "metadata.jsonl line 13", "metadata.jsonl line 14", "cut.png", "empty.jpg",
        "text.webp", "silent.png",
    }
    assert source.broken["silent.png"] == "has no caption"
    assert "skipped cut.png" in caplog.text and "7 broken of 15" in caplog.text
    assert source.check() == source.broken


def test_too_many_broken_files_stop_the_run(tmp_path):
    for i in range(9):
        picture(tmp_path / f"{i}.png", "red")
        (tmp_path / f"{i}.txt").write_text("red")
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_bytes(b"junk")
        (tmp_path / name).with_suffix(".txt").write_text("junk")
    config = DataConfig(image_size=16)
    source = opened(tmp_path, max_broken_share=0.1)
    with pytest.raises(SdjaxError, match=r"2 of 11 items.*max_broken_share=0.1.*x.png"):
        list(loader(source, config, 2, repeat=False))
    assert len(list(loader(opened(tmp_path, max_broken_share=0.2), config, 2, repeat=False))) == 5


def test_captions_may_be_waived(tmp_path):
    picture(tmp_path / "a.png", "red")
    assert opened(tmp_path, require_captions=False)[0]["caption"] == ""
    with pytest.raises(SdjaxError, match="1 of 1 items are broken.*has no caption"):
        opened(tmp_path)[0]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(SdjaxError, match="expected a folder of pictures"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(SdjaxError, match="no subfolder for the split 'test'"):
        ImageFolder(tmp_path, "test")
    with pytest.raises(SdjaxError, match="found no pictures"):
        ImageFolder(tmp_path)


def test_bytes_decode_too_and_junk_is_broken(tmp_path):
    data = picture(tmp_path / "a.png", "red").read_bytes()
    assert decode_image(data, "a").shape == (20, 20, 3)
    random = np.random.default_rng(0)
    for _ in range(200):
        junk = bytearray(data)
        for at in random.integers(0, len(junk), 4):
            junk[at] = random.integers(256)
        try:
            decode_image(bytes(junk), "a")
        except BrokenItem as broken:
            assert broken.name == "a"


def test_cropping_keeps_the_middle():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (crop_and_resize(image, 10) == 200).all()
    assert (crop_and_resize(image.transpose(1, 0, 2), 5) == 200).all()
    assert crop_and_resize(image[:, :10], 10) is not None


def test_floats_and_bytes_convert_exactly():
    values = np.arange(256, dtype=np.uint8)
    floats = to_float(values)
    assert floats.dtype == np.float32 and floats[0] == -1 and floats[-1] == 1
    np.testing.assert_array_equal(to_uint8(floats), values)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0])), [0, 255])
