"""Captions of many scripts, on an outline font that matplotlib brings."""
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from sdjax.evaluation import letters
from sdjax.evaluation.letters import Letters
from sdjax.evaluation.sheets import sheet, wrap

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@pytest.fixture(autouse=True)
def only_dejavu(monkeypatch):
    monkeypatch.setattr(letters, "_fonts", lambda: (None, DEJAVU))
    letters._font_of.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    letters._font_of.cache_clear()


def drawn(text, size=20):
    canvas, font = Image.new("RGB", (400, 60), "white"), Letters(size, [text])
    font.draw(canvas, (4, 4), text, "black")
    return np.asarray(canvas), font


def drawn_by_pillow(text, font, ascent):
    canvas = Image.new("RGB", (400, 60), "white")
    ImageDraw.Draw(canvas).text((4, 4 + ascent), text, "black", font, anchor="ls")
    return np.asarray(canvas)


@pytest.mark.parametrize("text", [
    "Привет мир", "Ελληνικά – né", "مرحبا بالعالم", "שלום", "😀 a grinning face", "Tiếng Việt"])
def test_a_caption_is_drawn_in_a_font_that_has_its_script(text):
    found, font = drawn(text)
    peer = ImageFont.truetype(str(DEJAVU), 20)
    np.testing.assert_array_equal(found, drawn_by_pillow(text, peer, font.ascent))
    assert font.getlength(text) == peer.getlength(text)
    boxes = drawn_by_pillow(text, ImageFont.load_default(20), font.ascent)
    assert (found != boxes).any()


def test_what_pillows_own_font_has_is_drawn_in_it():
    own = ImageFont.load_default(20)
    found, font = drawn("a red square, 7")
    assert font.line_height == sum(own.getmetrics()) + 1
    np.testing.assert_array_equal(found, drawn_by_pillow("a red square, 7", own, font.ascent))


def test_a_caption_of_several_fonts_is_drawn_in_parts(monkeypatch):
    parts = letters._parts("ab Ж")
    assert parts == [(DEJAVU, "ab Ж")]  # which has all of it
    monkeypatch.setattr(letters, "_has", lambda path, c: c.isascii() == (path is None))
    letters._font_of.cache_clear()
    assert letters._parts("ab Ж é") == [(None, "ab "), (DEJAVU, "Ж é")]
    assert Letters(20).getlength("ab Ж") == (
        ImageFont.load_default(20).getlength("ab ")
        + ImageFont.truetype(str(DEJAVU), 20).getlength("Ж"))
    assert (drawn("ab Ж")[0] < 128).any()


def test_what_no_font_has_is_told():
    images = np.zeros((2, 8, 8, 3))
    with pytest.warns(UserWarning, match="no installed font has the characters 你 好: they are"):
        found = sheet(images, ["你好", "a"])
    assert found.width > 16
    sheet(images, ["a\u200d", "Ж"])  # a joiner has no sign that could be missing


def test_text_without_spaces_is_wrapped():
    font = Letters(13)
    lines = wrap("снегснегснег" * 4, font, 90)
    assert len(lines) > 2 and max(font.getlength(line) for line in lines) <= 90
    assert "".join(lines) == "снегснегснег" * 4


def test_a_font_of_pictures_is_scaled(monkeypatch):
    truetype = ImageFont.truetype

    def only_one_size(path, size, **options):
        if path == str(DEJAVU) and size != 109:
            raise OSError("invalid pixel size")
        return truetype(path, size, **options)

    monkeypatch.setattr(letters.ImageFont, "truetype", only_one_size)
    letters._scaled.cache_clear()
    letters._has.cache_clear()
    try:
        found, font = drawn("Ж")
        wanted = truetype(str(DEJAVU), 109).getlength("Ж") * 20 / 109
        assert font.getlength("Ж") == pytest.approx(wanted)
        dark = np.argwhere(found.min(-1) < 100)
        assert 12 <= np.ptp(dark[:, 0]) <= 18 and np.ptp(dark[:, 1]) <= wanted
    finally:
        letters._scaled.cache_clear()
        letters._has.cache_clear()


def test_installed_fonts_are_found_and_damaged_ones_passed_over(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "DejaVuSansX.ttf").write_bytes(b"junk")
    monkeypatch.setattr(letters, "_FOLDERS", (str(tmp_path),))
    letters._fonts.cache_clear()
    try:
        fonts = letters._fonts()
        assert fonts[0] is None and {DEJAVU, tmp_path / "deep" / "DejaVuSansX.ttf"} <= set(fonts)
        assert not letters._has(tmp_path / "deep" / "DejaVuSansX.ttf", "a")
        assert letters._font_of("Ж").name.startswith("DejaVuSans")
    finally:
        letters._fonts.cache_clear()
