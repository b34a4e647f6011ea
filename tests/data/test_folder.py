import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from sdjax.data import DataConfig, loader, open_source
from sdjax.data.folder import ImageFolder
from sdjax.data.images import crop_and_resize, decode_image, to_float, to_uint8
from sdjax.data.pictures import BrokenItem
from sdjax.errors import SdjaxError
from sdjax.weights.folder import read_json


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


TEXT = "a red fox – ä"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark", "utf-32"]


def encoded(text, encoding):
    if encoding == "utf-16-be-mark":
        return b"\xfe\xff" + text.encode("utf-16-be")
    return text.encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.jsonl", "metadata.csv"])
def test_captions_with_the_marks_of_editors(tmp_path, encoding, name):
    picture(tmp_path / "a.png", "red")
    text = {".jsonl": json.dumps({"file_name": "a.png", "text": TEXT}, ensure_ascii=False) + "\r\n",
            ".csv": f'file_name,text\r\na.png,"{TEXT}"\r\n'}.get(name[name.index("."):], TEXT)
    (tmp_path / name).write_bytes(encoded(text, encoding))
    source = opened(tmp_path)
    assert source[0]["caption"] == TEXT and not source.broken


def test_a_json_file_with_a_mark(tmp_path):
    (tmp_path / "config.json").write_bytes(encoded('{"a": 1}', "utf-8-sig"))
    assert read_json(tmp_path / "config.json") == {"a": 1}
    (tmp_path / "config.json").write_bytes('{"a": "ä"}'.encode("latin-1"))
    with pytest.raises(SdjaxError, match=r"config.json is not UTF-8 text \(line 1\): save it as"):
        read_json(tmp_path / "config.json")


def test_text_in_another_encoding_is_refused_by_name(tmp_path, caplog):
    for i in range(3):
        picture(tmp_path / f"{i}.png", "red")
        (tmp_path / f"{i}.txt").write_text("red")
    (tmp_path / "1.txt").write_bytes("Füchse".encode("latin-1"))
    source = opened(tmp_path)
    assert [source[i] is None for i in range(3)] == [False, True, False]
    # Once, under the picture's name: not once for the text and once for the picture.
    assert list(source.broken) == ["1.png"] and "1 broken of 3" in caplog.text
    assert "1.txt is not UTF-8 text (line 1): save it as UTF-8" in source.broken["1.png"]
    (tmp_path / "1.txt").write_bytes("Fox".encode("utf-16-le"))
    assert "zero bytes" in opened(tmp_path).check()["1.png"]
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n1.png,Füchse".encode("latin-1"))
    with pytest.raises(SdjaxError, match=r"metadata.csv is not UTF-8 text \(line 2\)"):
        opened(tmp_path)


def listed(source):
    return {source.raw.name(i): source[i] and source[i]["caption"] for i in range(len(source))}


def test_metadata_in_subfolders_and_above_them(tmp_path):
    for name in ("x/1.png", "x/deep/2.png", "y/3.png", "4.png", "y/5.png"):
        picture(tmp_path / name, "red")
    write_metadata(tmp_path, {"file_name": "x/1.png", "text": "one from above"},
                   {"file_name": "x\\deep\\2.png", "text": "two"},
                   {"file_name": "4.png", "text": "four"})
    write_metadata(tmp_path / "x", {"file_name": "1.png", "text": "one from beside"})
    (tmp_path / "y" / "metadata.csv").write_text(
        'caption,file_name\n"three, with a comma\nand a line",3.png\n', encoding="utf-8")
    (tmp_path / "y" / "5.txt").write_text("five")
    assert listed(opened(tmp_path)) == {
        "x/1.png": "one from beside", "x/deep/2.png": "two", "4.png": "four", "y/5.png": "five",
        "y/3.png": "three, with a comma\nand a line"}


def test_metadata_above_the_folder_of_a_split(tmp_path, caplog):
    picture(tmp_path / "train" / "a.png", "red")
    picture(tmp_path / "test" / "b.png", "blue")
    write_metadata(tmp_path, {"file_name": "train/a.png", "text": "a"},
                   {"file_name": "test/b.png", "text": "b"},
                   {"file_name": "train/gone.png", "text": "c"})
    source = opened(tmp_path)
    assert listed(source) == {"a.png": "a"} and list(source.broken) == ["train/gone.png"]
    assert listed(opened(tmp_path, split="test", max_broken_share=1)) == {"b.png": "b"}
    assert "left out" not in caplog.text
    picture(tmp_path / "boat" / "c.png", "blue")
    opened(tmp_path)
    assert "1 pictures beside it are left out" in caplog.text


def test_a_picture_with_several_rows_is_several_items(tmp_path):
    picture(tmp_path / "a.png", "red")
    write_metadata(tmp_path, {"file_name": "a.png", "text": "one"},
                   {"file_name": "a.png", "text": "two"})
    source = opened(tmp_path)
    assert [source[i]["caption"] for i in range(len(source))] == ["one", "two"]


def test_names_of_other_systems(tmp_path):
    picture(tmp_path / unicodedata.normalize("NFD", "é.png"), "red")
    picture(tmp_path / "b.heic", "red", format="PNG")
    picture(tmp_path / "odd.picture", "red", format="PNG")
    write_metadata(tmp_path, {"file_name": "é.png", "text": "e"},
                   {"file_name": "odd.picture", "text": "o"}, {"file_name": "b.heic", "text": "b"})
    assert sorted(listed(opened(tmp_path)).values()) == ["b", "e", "o"]


def test_hidden_files_and_sheets_are_none_of_it(tmp_path, caplog):
    picture(tmp_path / "a.png", "red")
    (tmp_path / "a.txt").write_text("a")
    for name in ("._a.png", ".hidden/b.png", "__MACOSX/._a.png", "x/.ipynb_checkpoints/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    picture(tmp_path / "00000-sheet.png", "red")
    source = opened(tmp_path)
    assert listed(source) == {"a.png": "a"} and not source.check()
    assert "left out 1 sheets of samples" in caplog.text
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert list(opened(tmp_path).check()) == ["gone.png"]


@pytest.mark.parametrize("files, reason", [
    ({"metadata.parquet": "PAR1"}, "metadata.parquet is not read: write its rows"),
    ({"metadata.csv": "file_name,text\n", "metadata.jsonl": ""}, "keep one of them"),
    ({"metadata.csv": "file_name;text\na.png;red\n"}, "its columns are file_name;text"),
    ({"metadata.csv": ""}, "its columns are none"),
    ({"sub/metadata.parquet": "PAR1"}, "sub/metadata.parquet is not read")])
def test_metadata_that_cannot_be_read_is_refused(tmp_path, files, reason):
    picture(tmp_path / "a.png", "red")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(SdjaxError, match=reason):
        opened(tmp_path)


def test_why_a_caption_is_missing(tmp_path):
    for name in ("in/a.png", "in/b.png", "in/c.png", "in/d.png"):
        picture(tmp_path / name, "red")
    write_metadata(tmp_path, {"file_name": "in/a.png", "text": "red"})
    broken = opened(tmp_path / "in", max_broken_share=1).check()
    assert "there is no a.txt beside it" in broken["a.png"]
    assert f"for {tmp_path / 'metadata.jsonl'} give the folder it lies in" in broken["a.png"]
    write_metadata(tmp_path / "in", {"file_name": "a.png", "prompt": "red"},
                   {"file_name": "b.png", "text": ["red"]})
    (tmp_path / "in" / "d.txt").write_text("\n")
    assert opened(tmp_path / "in", max_broken_share=1).check() == {
        "a.png": "has no caption: metadata.jsonl line 1 has no 'caption' or 'text'",
        "b.png": "has no caption: 'text' in metadata.jsonl line 2 is no text",
        "c.png": "has no caption: named neither in metadata.jsonl nor in a c.txt beside it",
        "d.png": "has no caption: d.txt is empty"}


def test_one_broken_picture_stops_no_small_folder_and_all_are_told_at_once(tmp_path, caplog):
    for i in range(20):
        picture(tmp_path / f"{i:02}.png", "red")
        (tmp_path / f"{i:02}.txt").write_text("red")
    (tmp_path / "03.png").write_bytes(b"junk")
    source = opened(tmp_path)
    assert list(source.check()) == ["03.png"]
    with pytest.raises(SdjaxError, match="1 of 20 items are broken"):
        opened(tmp_path, max_broken_share=0).check()
    (tmp_path / "05.png").write_bytes(b"junk")
    (tmp_path / "17.txt").write_text("")
    with pytest.raises(SdjaxError, match="3 of 20 items.*03.png: .*; 05.png: .*; 17.png: has no"):
        opened(tmp_path).check()
    assert "skipped 17.png: has no caption" in caplog.text


def test_folders_of_sd_scripts_repeat_and_caption(tmp_path):
    for name in ("10_sks dog/a.png", "10_sks dog/b.png", "2_dog/c.png", "others/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "10_sks dog/b.txt").write_text("sks dog, sitting")
    source = ImageFolder(tmp_path)
    assert source.items == [
        ("10_sks dog/a.png", "sks dog"), ("10_sks dog/b.png", "sks dog, sitting"),
        ("2_dog/c.png", "dog"), ("others/d.png", "")]
    assert source.repeats == [10, 10, 2, 1]
    assert ImageFolder(tmp_path / "2_dog").items == [("c.png", "dog")]


def test_lines_of_a_caption_are_one_caption_or_several(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" a  red cat\n\nan animal \n")
    assert ImageFolder(tmp_path)[0]["caption"] == "a red cat an animal"
    assert ImageFolder(tmp_path, lines=True)[0]["caption"] == "a red cat\nan animal"
