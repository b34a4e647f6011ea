"""Moving clips, and the oracle that reads them back."""

import numpy as np
import pytest

from sdjax.data import DataConfig, open_source
from sdjax.data.moving import (
    DIRECTIONS,
    FRAMES,
    MOTIONS,
    Moving,
    caption_of,
    kept_out,
    moving_captions,
    parse_moving,
)
from sdjax.data.moving_oracle import read_moving, score_moving
from sdjax.data.scenes import single_scenes
from sdjax.data.shapes import draw
from sdjax.errors import SdjaxError


@pytest.fixture(scope="module")
def shown():
    """(clips, captions) of both splits."""
    sources = Moving(split="train", seed=3), Moving(split="heldout", seed=3)
    items = [source[i] for source in sources for i in range(40)]
    return np.stack([item["image"] for item in items]), [item["caption"] for item in items]


def test_an_item_depends_on_seed_and_index_only():
    source, again = Moving(seed=4), Moving(seed=4)
    backwards = {i: again[i] for i in reversed(range(6))}
    for i in range(6):
        assert source[i]["caption"] == backwards[i]["caption"]
        np.testing.assert_array_equal(source[i]["image"], backwards[i]["image"])
    assert source[0]["image"].shape == (FRAMES, 32, 32, 3) and source[0]["image"].dtype == np.uint8
    short = Moving(seed=4, frames=3)[0]
    np.testing.assert_array_equal(short["image"], source[0]["image"][:3])
    still = Moving(seed=4, frames=1)[0]
    assert still["image"].shape == (32, 32, 3) and still["caption"] == source[0]["caption"]
    assert any((still["image"] == frame).all() for frame in source[0]["image"])


def test_a_fifth_of_the_pairs_is_kept_out_and_every_motion_is_in_both():
    pairs = [(scene, motion) for scene in single_scenes()[::7] for motion in MOTIONS]
    out = [kept_out(*pair) for pair in pairs]
    assert len(MOTIONS) == 17 and 0.17 < np.mean(out) < 0.23
    for split, wanted in (("train", False), ("heldout", True)):
        captions = moving_captions(400, split)
        assert len(set(captions)) == 400
        assert {kept_out(*parse_moving(caption)) for caption in captions} == {wanted}
        assert {parse_moving(caption)[1] for caption in captions} == set(MOTIONS)
    assert set(moving_captions(300)).isdisjoint(moving_captions(300, "heldout"))


def test_captions_are_read_back():
    for scene in single_scenes()[::101]:
        for motion in MOTIONS:
            assert parse_moving(caption_of(scene, motion)) == (scene, motion)
    for wrong in ("a large red circle on a yellow background", "a red circle moving slowly left"):
        with pytest.raises(SdjaxError, match="not a caption"):
            parse_moving(wrong)


def test_the_oracle_reads_clips(shown):
    clips, captions = shown
    found = score_moving(clips, captions)
    assert {name: float(found[name].mean()) for name in found if name not in ("moves", "residual")
            } == dict.fromkeys(("object", "identity", "direction", "speed", "even", "all"), 1.0)
    assert found["residual"].max() < 0.3
    noisy = clips / 127.5 - 1 + np.random.default_rng(0).normal(size=clips.shape) * 0.05
    assert score_moving(np.float32(noisy), captions)["all"].mean() > 0.95


def test_the_oracle_sees_what_is_wrong(shown):
    clips, captions = shown
    moves = np.array([not caption.endswith("still") for caption in captions])
    backwards = score_moving(clips[:, ::-1], captions)
    assert not backwards["direction"][moves].any() and backwards["speed"].all()
    assert backwards["direction"][~moves].all()
    mixed = score_moving(clips[:, [0, 5, 2, 7, 1, 4, 3, 6]], captions)
    fast = np.array(["quickly" in caption for caption in captions])
    assert not mixed["even"][fast].any()
    other = clips.copy()
    other[:, 4] = clips[np.roll(np.arange(len(clips)), 1), 4]
    assert not score_moving(other, captions)["identity"].any()
    empty = np.full((1, 3, 32, 32, 3), 250, np.uint8)
    read = read_moving(empty)[0]
    assert read.motion is None and np.isnan(read.residual)
    assert not score_moving(empty, captions[:1])["all"].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_line_by_hand(direction):
    scene = single_scenes()[0]
    way = np.array(DIRECTIONS[direction], float)
    frames = [draw(scene, [32 + 1.5 * (i - 2) * way], 32) for i in range(5)]
    read = read_moving(np.stack(frames)[None])[0]
    assert read.motion.direction == direction and read.motion.speed == "slowly"


def test_sources_by_name_and_what_is_refused():
    source = open_source(DataConfig(source="moving", image_size=32, frames=4))
    assert source[1]["image"].shape == (4, 32, 32, 3) and len(source) == 1_000_000
    for options, message in (
        ({"frames": 9}, "moving clips have 1 to 8 frames, got 9"),
        ({"image_size": 16}, "readable from 32 pixels on"),
        ({"split": "other"}, "split must be one of train, heldout, all"),
    ):  # fmt: skip
        with pytest.raises(SdjaxError, match=message):
            open_source(DataConfig(**{"source": "moving", "image_size": 32, **options}))
    with pytest.raises(SdjaxError, match="expected clips"):
        read_moving(np.zeros((2, 32, 32, 3)))
