import numpy as np
import pytest

from sdjax.data.tags import CaptionConfig
from sdjax.errors import SdjaxError

CAPTION = "sks dog, red, green, blue, large"


def test_shuffled_tags_keep_their_prefix_and_lose_none():
    config = CaptionConfig(shuffle=True, keep=2)
    seen = set()
    for seed in range(200):
        tags = config.varied(CAPTION, np.random.default_rng(seed)).split(", ")
        assert tags[:2] == ["sks dog", "red"]
        assert sorted(tags) == sorted(CAPTION.split(", "))
        seen.add(tuple(tags))
    assert len(seen) == 6  # every order of three


def test_dropped_tags_are_so_many_and_never_the_kept():
    config, random = CaptionConfig(tag_dropout=0.25, keep=1), np.random.default_rng(0)
    kept = [config.varied(CAPTION, random).split(", ") for _ in range(2000)]
    assert all(tags[0] == "sks dog" for tags in kept)
    share = np.mean([len(tags) - 1 for tags in kept]) / 4
    assert abs(share - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 8000)


def test_a_prompt_takes_the_captions_place_or_stands_around_it():
    assert CaptionConfig().of("a dog") == "a dog"
    assert CaptionConfig(prompt="a photo of sks").of("a dog") == "a photo of sks"
    assert CaptionConfig(prompt="sks, {}").of("a dog") == "sks, a dog"
    assert not CaptionConfig(prompt="a").takes_own and CaptionConfig(prompt="{}").takes_own
    assert CaptionConfig().varied(CAPTION, None) == CAPTION


def test_settings_that_cannot_be():
    with pytest.raises(SdjaxError, match="tag_dropout"):
        CaptionConfig(tag_dropout=1.0)
    with pytest.raises(SdjaxError, match="separator"):
        CaptionConfig(separator="")


def test_one_of_several_captions_is_drawn_each_time():
    config = CaptionConfig(prompt="{}, photo")
    caption = config.of("a cat\na dog, red")
    assert caption == "a cat, photo\na dog, red, photo"
    seen = {config.varied(caption, np.random.default_rng((0, i))) for i in range(20)}
    assert seen == {"a cat, photo", "a dog, red, photo"}
    assert CaptionConfig(prompt="x").of("a\nb") == "x"
