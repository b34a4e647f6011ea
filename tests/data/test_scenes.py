import itertools

import pytest

from sdjax.data.scenes import (
    BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing, held_out, parse_caption,
    single_scenes,
)
from sdjax.errors import SdjaxError

CIRCLE = Thing("large", "red", "circle")
SQUARE = Thing("small", "blue", "square")


def test_captions_read_as_they_are_written():
    scene = Scene("yellow", (CIRCLE, SQUARE), "above")
    assert scene.caption == "a large red circle above a small blue square on a yellow background"
    assert Scene("white", (SQUARE,)).caption == "a small blue square on a white background"


def test_every_caption_parses_back():
    things = [Thing(*parts) for parts in itertools.product(SIZES, COLOURS, SHAPES)]
    for scene in single_scenes():
        assert parse_caption(scene.caption) == scene
    for relation, background in itertools.product(RELATIONS, BACKGROUNDS):
        for first, second in zip(things, things[::-1]):
            scene = Scene(background, (first, second), relation)
            assert parse_caption(scene.caption) == scene


@pytest.mark.parametrize("caption", [
    "", "a red circle", "a large red circle on a mauve background",
    "a large red circle over a small blue square on a yellow background",
])
def test_other_captions_are_refused(caption):
    with pytest.raises(SdjaxError, match="expected e.g."):
        parse_caption(caption)


@pytest.mark.parametrize("relation, mirrored", [("above", "below"), ("left of", "right of")])
def test_two_ways_of_saying_one_picture_share_a_side_of_the_split(relation, mirrored):
    for background in BACKGROUNDS:
        said = Scene(background, (CIRCLE, SQUARE), relation)
        turned = Scene(background, (SQUARE, CIRCLE), mirrored)
        assert said.canonical() == turned.canonical()
        assert held_out(said) == held_out(turned)


def test_a_fifth_of_the_captions_is_held_out():
    assert len(single_scenes()) == 3 * 8 * 5 * 7
    train, held = single_scenes("train"), single_scenes("heldout")
    assert set(train) | set(held) == set(single_scenes()) and not set(train) & set(held)
    assert 0.18 < len(held) / len(single_scenes()) < 0.22


def test_training_still_sees_every_attribute_in_every_combination_of_two():
    seen = {pair for scene in single_scenes("train") for pair in _pairs(scene)}
    assert seen == {pair for scene in single_scenes() for pair in _pairs(scene)}


def _pairs(scene):
    thing = scene.things[0]
    parts = thing.size, thing.colour, thing.shape, scene.background + " background"
    return itertools.combinations(parts, 2)
