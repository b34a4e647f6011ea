"""What a source holds is told apart by content, whatever the files' times."""
import os

import numpy as np
import pytest
from PIL import Image

from sdjax.data.content import Content, Stamps
from sdjax.data.folder import ImageFolder
from sdjax.data.shapes import Shapes


@pytest.fixture
def folder(tmp_path):
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{number}.ppm")  # all of one size
        (tmp_path / f"{number}.txt").write_text(colour)
    return tmp_path


def content(folder, known=None, read=True):
    source = ImageFolder(folder)
    return source.content(Stamps(known.files if known else {}, read), len(source))


def test_a_file_of_the_same_bytes_is_the_same(folder):
    first = content(folder)
    os.utime(folder / "0.ppm", (1, 1))
    again = content(folder, first)
    assert again.changes(first) == "" and again.digest() == first.digest()
    assert again.keys(3) == first.keys(3)
    unread = content(folder, first, read=False)
    assert unread.changes(first) == "1 picture changed"  # as far as its time tells


@pytest.mark.parametrize("kept_time", [False, True])
def test_other_bytes_of_the_same_size_are_others(folder, kept_time):
    first = content(folder)
    before = os.stat(folder / "1.ppm")
    Image.new("RGB", (4, 4), "navy").save(folder / "new.ppm")
    os.replace(folder / "new.ppm", folder / "1.ppm")
    if kept_time:
        os.utime(folder / "1.ppm", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(folder / "1.ppm").st_size == before.st_size
    again = content(folder, first)
    assert again.changes(first) == "1 picture changed" and again.digest() != first.digest()
    same = [a == b for a, b in zip(again.keys(3), first.keys(3))]
    assert same == [True, False, True]


def test_changes_are_counted(folder):
    first = content(folder)
    (folder / "1.txt").write_text("a green square")
    (folder / "0.ppm").unlink()
    for number in (7, 8):
        Image.new("RGB", (4, 4), "pink").save(folder / f"{number}.ppm")
    again = content(folder, first)
    assert again.changes(first) == "2 pictures added, 1 picture removed, 1 caption changed"
    assert first.changes(again) == "1 picture added, 2 pictures removed, 1 caption changed"
    assert again.keys(4)[2] == again.keys(4)[3]  # of one content
    assert again.captions_digest(1) != first.captions_digest(1)


def test_a_picture_may_have_several_captions(folder):
    lines = ['{"file_name": "0.ppm", "text": "a"}', '{"file_name": "0.ppm", "text": "b"}']
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    first = content(folder)
    assert first.items[:2] == (("0.ppm", "a"), ("0.ppm", "b"))
    (folder / "metadata.jsonl").write_text("\n".join([*lines, lines[1].replace("b", "c")]))
    assert content(folder, first).changes(first) == "1 caption changed"


def test_files_that_are_known_are_not_read_again(folder, monkeypatch):
    first = content(folder)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert content(folder, first) == first
    assert all(not stamp.digest for stamp in content(folder, read=False).files.values())


def test_it_comes_back_from_json(folder):
    for whole in (content(folder), Shapes().content(None, 3)):
        assert Content.from_json(whole.to_json()) == whole


def test_a_file_that_is_gone_is_known_by_nothing(folder):
    source = ImageFolder(folder)
    (folder / "1.ppm").unlink()
    assert source.content(Stamps({}), 3).keys(3)[1] == ""


def test_drawn_pictures_are_told_apart_by_settings_and_by_what_is_drawn(monkeypatch):
    plain = Shapes(32).content(None, 4)
    assert Shapes(32).content(None, 9) == plain and len(set(plain.keys(4))) == 4
    for other in (Shapes(33), Shapes(32, "two"), Shapes(32, seed=1), Shapes(32, split="all")):
        assert other.content(None, 4).changes(plain) == "other pictures or captions"
    monkeypatch.setitem(Shapes(32).content.__globals__["COLOURS"], "red", (200, 0, 0))
    assert not set(Shapes(32).content(None, 4).keys(4)) & set(plain.keys(4))


def test_a_data_set_is_told_apart_by_its_files_and_the_choice_among_its_features(tmp_path):
    from sdjax.data.tfds_source import TfdsSource

    source = TfdsSource.__new__(TfdsSource)

    def whole(**choice):
        chosen = {"split": "train", "image_key": "image", "caption_key": "text",
                  "label_key": None, "_kept": None, **choice}
        source.__dict__.update(chosen, builder=type("Builder", (), {"data_path": tmp_path}))
        return source.content(Stamps({}), 5)

    (tmp_path / "set-train.array_record-00000-of-00001").write_bytes(b"1234")
    first = whole()
    assert whole() == first and whole(caption_key="title").changes(first)
    assert whole(_kept=[1, 2]).digest() != first.digest()
    (tmp_path / "set-train.array_record-00000-of-00001").write_bytes(b"1235")
    assert whole().changes(first) == "other pictures or captions"
    assert not np.isin(whole().keys(5), first.keys(5)).any()
