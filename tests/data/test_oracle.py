import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from sdjax.data.oracle import ATTRIBUTES, read_shapes, score
from sdjax.data.scenes import parse_caption
from sdjax.data.shapes import Shapes, draw
from sdjax.errors import SdjaxError

NUMBER = 400
PAIR = "a large red circle above a small blue square on a yellow background"


@pytest.fixture(scope="module", params=["one", "two"])
def pictures(request):
    source = Shapes(objects=request.param, split="all", seed=11)
    items = [source[i] for i in range(NUMBER)]
    return np.stack([i["image"] for i in items]), [i["caption"] for i in items]


def blurred(images, sigma):
    return gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0))


def as_jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_true_pictures_are_read_right(pictures):
    images, captions = pictures
    right = score(images, captions)
    assert set(right) == set(ATTRIBUTES)
    assert right["all"].mean() >= 0.995


def test_an_object_inside_another_is_read_at_half_the_size():
    source = Shapes(image_size=32, objects="two", split="all", seed=5)
    inside = [i for i in range(2_000) if source.layout(i)[0].relation == "inside"]
    items = [source[i] for i in inside]
    right = score(np.stack([i["image"] for i in items]), [i["caption"] for i in items])
    assert right["all"].mean() >= 0.995


@pytest.mark.parametrize("objects", ["one", "two"])
def test_pictures_of_half_the_size_are_read_right(objects):
    """32 pixels, the size that the recipes train at."""
    source = Shapes(image_size=32, objects=objects, split="all", seed=12)
    items = [source[i] for i in range(2 * NUMBER)]
    right = score(np.stack([i["image"] for i in items]), [i["caption"] for i in items])
    assert right["all"].mean() >= 0.995


def test_floats_read_as_bytes_do(pictures):
    images, captions = pictures
    images, captions = images[:50], captions[:50]
    floats = images.astype(np.float32) / 127.5 - 1
    assert read_shapes(floats) == read_shapes(images)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.3])
def test_blur_is_borne(pictures, sigma):
    images, captions = pictures
    images = np.clip(blurred(images, sigma), 0, 255).astype(np.uint8)
    assert score(images, captions)["all"].mean() >= 0.98


def test_noise_and_compression_are_borne(pictures):
    images, captions = pictures
    random = np.random.default_rng(0)
    noisy = images + random.normal(0, 20, images.shape)
    assert score(np.clip(noisy, 0, 255).astype(np.uint8), captions)["all"].mean() >= 0.98
    smooth = blurred(images, 0.8) + blurred(random.normal(0, 40, images.shape), 1.0)
    assert score(np.clip(smooth, 0, 255).astype(np.uint8), captions)["all"].mean() >= 0.98
    packed = np.stack([as_jpeg(image, 50) for image in images])
    assert score(packed, captions)["all"].mean() >= 0.98


def test_larger_pictures_are_read_too():
    source = Shapes(image_size=128, objects="both", seed=2)
    items = [source[i] for i in range(60)]
    right = score(np.stack([i["image"] for i in items]), [i["caption"] for i in items])
    assert right["all"].mean() >= 0.98


@pytest.mark.parametrize("caption, wrong", [
    ("a large red circle below a small blue square on a yellow background", {"relation"}),
    ("a large red circle left of a small blue square on a yellow background", {"relation"}),
    ("a large red star above a small blue square on a yellow background", {"shape"}),
    ("a large pink circle above a small blue square on a yellow background", {"colour"}),
    ("a medium red circle above a small blue square on a yellow background", {"size"}),
    ("a large red circle above a small blue square on a white background", {"background"}),
    ("a large red circle on a yellow background", {"count", "shape", "colour", "size", "relation"}),
    ("a small blue square below a large red circle on a yellow background", set()),
])
def test_each_attribute_is_judged_by_itself(caption, wrong):
    image = draw(parse_caption(PAIR), [(30, 20), (34, 50)])
    right = {name for name, value in score(image, caption).items() if value[0]}
    joint = {"shape_and_colour"} if wrong & {"shape", "colour"} else set()
    assert right == set(ATTRIBUTES) - wrong - joint - ({"all"} if wrong else set())


def test_like_objects_may_stand_either_way_round():
    caption = "a small red star left of a small red star on a white background"
    image = draw(parse_caption(caption), [(15, 30), (45, 34)])
    assert score(image, caption)["all"].all()
    assert score(image, caption.replace("left", "right"))["all"].all()


def test_a_ring_a_blank_and_noise_are_no_shapes():
    disc = draw(parse_caption("a large red circle on a white background"), [(32, 32)])
    ring = disc.copy()
    y, x = np.mgrid[:64, :64] - 31.5
    ring[x**2 + y**2 < 9**2] = 250
    assert read_shapes(disc).things[0].shape == "circle"
    assert read_shapes(ring).things[0].shape is None
    blank = np.full((64, 64, 3), 250, np.uint8)
    assert read_shapes(blank).things == () and read_shapes(blank).background == "white"
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    assert not score(noise, [PAIR] * 4)["shape"].any()


def test_a_colour_without_a_name_is_none():
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert read_shapes(grey).background is None


def test_an_empty_batch_and_wrong_shapes():
    assert read_shapes(np.zeros((0, 64, 64, 3), np.uint8)) == []
    with pytest.raises(SdjaxError, match="square RGB"):
        read_shapes(np.zeros((64, 32, 3), np.uint8))
    with pytest.raises(SdjaxError, match="one caption a picture"):
        score(np.zeros((2, 64, 64, 3), np.uint8), [PAIR])
