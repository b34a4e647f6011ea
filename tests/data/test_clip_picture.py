import numpy as np
import pytest
import transformers
from PIL import Image

from sdjax.data import clip_picture


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(300, 517), (517, 300), (224, 224), (50, 97), (231, 224)])
def test_pictures_equal_those_of_transformers(shape):
    picture = Image.fromarray(noise(*shape, 3))
    for options in ({}, {"size": 224, "crop_size": 224}):
        processor = transformers.CLIPImageProcessor(**options)
        theirs = processor(picture, return_tensors="np").pixel_values[0]
        np.testing.assert_allclose(clip_picture(picture), theirs.transpose(1, 2, 0), atol=1e-6)


def test_another_size_equals_that_of_transformers():
    picture = Image.fromarray(noise(91, 70, 3))
    theirs = transformers.CLIPImageProcessor(size=42, crop_size=42)(picture, return_tensors="np")
    ours = clip_picture(picture, 42)
    assert ours.dtype == np.float32 and ours.shape == (42, 42, 3)
    np.testing.assert_allclose(ours, theirs.pixel_values[0].transpose(1, 2, 0), atol=1e-6)


def test_pictures_of_other_modes_are_taken_as_they_are_shown():
    grey = Image.fromarray(noise(60, 80))
    np.testing.assert_array_equal(clip_picture(grey, 42), clip_picture(grey.convert("RGB"), 42))
    clear = Image.new("RGBA", (50, 50), (200, 0, 0, 0))
    white = Image.new("RGB", (50, 50), "white")
    np.testing.assert_array_equal(clip_picture(clear, 42), clip_picture(white, 42))
