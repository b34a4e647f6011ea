"""Edges against OpenCV's, pixel by pixel."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

import sdjax
from sdjax.data import canny


def picture(size, blur):
    noise = np.random.RandomState(0).randint(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(blur))


@pytest.mark.parametrize("size", [(64, 96), (37, 51), (5, 3), (1, 1)])
@pytest.mark.parametrize("levels", [(100, 200), (20, 40.5), (0, 0), (60, 60)])
def test_edges_are_those_of_opencv(size, levels):
    for blur in (0, 1, 3):
        shown = picture(size, blur)
        expected = cv2.Canny(np.asarray(shown), *levels)
        found = canny(shown, *levels)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), np.repeat(expected[..., None], 3, 2))
    if size == (64, 96) and levels[1]:
        assert 0 < (np.asarray(canny(picture(size, 1), *levels)) > 0).mean() < 1


def test_files_and_what_is_refused(tmp_path):
    picture((20, 20), 1).save(tmp_path / "a.png")
    same = canny(picture((20, 20), 1))
    np.testing.assert_array_equal(np.asarray(canny(tmp_path / "a.png")), np.asarray(same))
    with pytest.raises(sdjax.SdjaxError, match="must be in order, from 0 on, got 200 and 100"):
        canny(tmp_path / "a.png", 200, 100)
    (tmp_path / "b.png").write_text("none")
    with pytest.raises(sdjax.SdjaxError, match="picture: not a readable picture"):
        canny(tmp_path / "b.png")
