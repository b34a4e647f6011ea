import numpy as np
import pytest
from PIL import Image, ImageFont

from sdjax.errors import SdjaxError
from sdjax.evaluation.sheets import sheet, to_pil, to_uint8, wrap


def test_to_uint8_maps_the_range():
    images = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32).reshape(1, 5, 1, 1)
    assert to_uint8(images).ravel().tolist() == [0, 0, 128, 255, 255]
    assert to_uint8([Image.new("RGB", (3, 2), "red")]).shape == (1, 2, 3, 3)


@pytest.mark.parametrize("bad", [
    np.zeros((4, 4, 3)), np.zeros((1, 4, 4, 2)), np.zeros((1, 4, 4, 3), np.int32),
    np.full((1, 4, 4, 3), np.nan), [Image.new("RGB", (3, 2)), Image.new("RGB", (2, 3))]])
def test_to_uint8_refuses(bad):
    with pytest.raises(SdjaxError):
        to_uint8(bad)


def test_wrap_keeps_every_letter_within_the_width():
    font = ImageFont.load_default(13)
    text = "a large red circle above pneumonoultramicroscopicsilicovolcanoconiosis"
    lines = wrap(text, font, 90)
    assert max(font.getlength(line) for line in lines) <= 90
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("", font, 90) == []


def test_sheet_places_pictures_and_text():
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    images = np.broadcast_to(colors[:, None, None], (3, 32, 32, 3))
    plain = sheet(images, columns=2, scale=2, margin=4)
    assert plain.size == (2 * 64 + 3 * 4, 2 * 64 + 3 * 4)
    assert plain.getpixel((4, 4)) == (255, 0, 0)
    assert plain.getpixel((4 + 64 + 4, 4)) == (0, 255, 0)
    assert plain.getpixel((4, 4 + 64 + 4)) == (0, 0, 255)

    captioned = sheet(images, ["a red square", "", "b"], columns=3, scale=2, margin=4,
                      title="three squares")
    assert captioned.height > 64 + 8
    pixels = np.asarray(captioned)
    assert (pixels.sum(-1) < 200).any()
    assert np.array_equal(pixels, np.asarray(sheet(
        images, ["a red square", "", "b"], columns=3, scale=2, margin=4, title="three squares")))


def test_sheet_takes_pictures_of_different_sizes():
    made = sheet([Image.new("L", (8, 8), 9), np.zeros((4, 4, 3), np.uint8)], margin=1)
    assert made.size == (8 * 2 + 3, 10)
    assert len(to_pil(np.zeros((2, 4, 4, 1)))) == 2


def test_sheet_names_a_wrong_count():
    with pytest.raises(SdjaxError, match="1 pictures, 2 captions"):
        sheet(np.zeros((1, 4, 4, 3)), ["a", "b"])
    with pytest.raises(SdjaxError, match="at least one"):
        sheet([])
