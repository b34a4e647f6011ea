import hashlib

import numpy as np
import pytest

from sdjax.data.scenes import COLOURS, RELATIONS, SIZES, held_out, parse_caption
from sdjax.data.shapes import MARGIN, UNIT, Shapes, draw, sprite
from sdjax.errors import SdjaxError


def test_an_item_depends_on_seed_and_index_only():
    first, second = Shapes(objects="both", seed=4), Shapes(objects="both", seed=4)
    backwards = {i: second[i] for i in reversed(range(20))}
    for i in range(20):
        assert first[i]["caption"] == backwards[i]["caption"]
        np.testing.assert_array_equal(first[i]["image"], backwards[i]["image"])
    other = Shapes(objects="both", seed=5)
    assert [first[i]["caption"] for i in range(9)] != [other[i]["caption"] for i in range(9)]


def test_the_pictures_stay_what_they_were():
    """Trained models and published figures depend on them."""
    source = Shapes(objects="both", split="all", seed=1)
    captions = "\n".join(source[i]["caption"] for i in range(50)).encode()
    assert hashlib.sha256(captions).hexdigest()[:16] == "8e21161c83198139"
    assert source[0]["image"].shape == (64, 64, 3) and source[0]["image"].dtype == np.uint8
    means = [source[i]["image"].mean() for i in range(6)]
    np.testing.assert_allclose(means, [19.3, 173.44, 171.37, 172.19, 52.23, 170.43], atol=0.05)


def test_indices_go_on_beyond_the_length():
    assert Shapes(length=10)[10**12]["image"].shape == (64, 64, 3)
    with pytest.raises(IndexError):
        Shapes()[-1]


@pytest.mark.parametrize("split", ["train", "heldout", "all"])
@pytest.mark.parametrize("objects", ["one", "two"])
def test_splits_hold_what_they_say(objects, split):
    source = Shapes(objects=objects, split=split)
    scenes = [parse_caption(source[i]["caption"]) for i in range(200)]
    assert {len(scene.things) for scene in scenes} == {1 if objects == "one" else 2}
    sides = {held_out(scene) for scene in scenes}
    assert sides == {"train": {False}, "heldout": {True}, "all": {False, True}}[split]


def test_pairs_use_every_relation_colour_and_size_and_leave_room():
    source = Shapes(objects="two", split="all")
    relations, colours = set(), set()
    for i in range(400):
        scene, centres = source.layout(i)
        relations.add(scene.relation)
        colours.update(thing.colour for thing in scene.things)
        assert scene.background not in [thing.colour for thing in scene.things]
        for thing, centre in zip(scene.things, centres):
            reach = SIZES[thing.size] / 2 + MARGIN - 1e-6
            assert all(reach <= c <= UNIT - reach for c in centre)
        (x0, y0), (x1, y1) = centres
        right, down = x1 - x0, y1 - y0
        if scene.relation == "inside":
            assert abs(right) < 8 and abs(down) < 8
            assert scene.things[0].colour != scene.things[1].colour
        else:
            side, along, across = {
                "above": (1, down, right), "below": (-1, down, right),
                "left of": (1, right, down), "right of": (-1, right, down),
            }[scene.relation]
            assert side * along > abs(across) / 0.61
    assert relations == set(RELATIONS) and colours == set(COLOURS)


@pytest.mark.parametrize("image_size", [32, 64, 96, 128])
def test_pictures_of_other_sizes_show_the_same(image_size):
    small, large = Shapes(objects="two"), Shapes(image_size=image_size, objects="two")
    factor = image_size / 64
    for i in range(5):
        assert small[i]["caption"] == large[i]["caption"]
        image = large[i]["image"]
        assert image.shape == (image_size, image_size, 3)
        assert abs(image.mean() - small[i]["image"].mean()) < 3 / min(factor, 1)


def test_objects_are_antialiased_and_of_their_colour():
    scene = parse_caption("a medium red circle on a white background")
    image = draw(scene, [(32, 32)])
    assert tuple(image[32, 32]) == COLOURS["red"] and tuple(image[2, 2]) == COLOURS["white"]
    between = (image != COLOURS["red"]).any(-1) & (image != COLOURS["white"]).any(-1)
    assert 20 < between.sum() < 120
    np.testing.assert_array_equal(image, image[:, ::-1])


def test_sprites_cover_what_geometry_says():
    assert abs(sprite("circle", 19.0).sum() - np.pi * 9.5**2) < 2
    assert abs(sprite("square", 13.0, 1, 3).sum() - 13**2) < 2
    assert abs(sprite("triangle", 28.0, 2, 0).sum() - 28**2 / 2) < 4


@pytest.mark.parametrize("options", [{"objects": "three"}, {"split": "test"}, {"image_size": 16}])
def test_wrong_options_are_refused(options):
    with pytest.raises(SdjaxError):
        Shapes(**options)
