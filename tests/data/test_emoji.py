"""The builder at work on an outline font that matplotlib brings, and a short list of emoji."""
import logging

import matplotlib
import numpy as np
import pytest

from sdjax.data import emoji_font, emoji_list
from sdjax.data.emoji import EmojiConfig, open_emoji
from sdjax.data.emoji_font import EmojiFont
from sdjax.data.emoji_list import Emoji, emoji_subset, read_emoji_test
from sdjax.errors import SdjaxError

LIST = """\
# emoji-test.txt
# Version: 15.0

# group: Smileys & Emotion

# subgroup: face-smiling
1F600                  ; fully-qualified     # 😀 E1.0 grinning face
1F603                  ; fully-qualified     # 😃 E0.6 grinning face with big eyes

# subgroup: heart
2764 FE0F              ; fully-qualified     # ❤️ E0.6 red heart
2764                   ; unqualified         # ❤ E0.6 red heart

# group: People & Body

# subgroup: person-role
1F468 200D 1F33E       ; fully-qualified     # 👨‍🌾 E4.0 man farmer

# group: Component
# subgroup: skin-tone
1F3FB                  ; component           # 🏻 E1.0 light skin tone

# group: Symbols
# subgroup: other-symbol
00A9 FE0F              ; fully-qualified     # ©️ E0.6 copyright
"""


@pytest.fixture(scope="module")
def font():
    return matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    path = tmp_path_factory.mktemp("unicode") / "emoji-test.txt"
    path.write_text(LIST, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def config(font, names):
    return EmojiConfig(name="dejavu", font=font, names=names)


def test_the_list_keeps_whole_emoji_in_order(names):
    emoji = read_emoji_test(names)
    assert emoji[0] == Emoji("😀", "grinning face", "Smileys & Emotion", "face-smiling")
    assert [e.codepoints for e in emoji] == [
        "1f600", "1f603", "2764-fe0f", "1f468-200d-1f33e", "00a9-fe0f",
    ]


def test_the_builder_draws_stores_and_reads_back(config, data_dir, caplog):
    with caplog.at_level(logging.WARNING):
        source = open_emoji(data_dir=data_dir, config=config)
    captions = [source[i]["caption"] for i in range(len(source))]
    assert captions == ["grinning face", "grinning face with big eyes", "red heart", "copyright"]
    assert "the font lacks 1 of 5 emoji: man farmer" in caplog.text
    image = source[0]["image"]
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert (image[0] == 255).mean() > 0.8 and image.min() < 30
    record = source.builder.as_data_source("train")[2]
    assert record["group"] == b"Smileys & Emotion" and record["subgroup"] == b"heart"
    assert record["codepoints"] == b"2764-fe0f"


def test_subsets(config, data_dir):
    def captions(subset):
        source = open_emoji(subset, data_dir, config)
        return [source[i]["caption"] for i in range(len(source))]

    assert captions("core") == ["grinning face", "grinning face with big eyes", "red heart"]
    assert captions("heart, Symbols") == ["red heart", "copyright"]
    with pytest.raises(SdjaxError, match="'hearts'; did you mean 'heart'"):
        captions("face-smiling,hearts")
    with pytest.raises(SdjaxError, match="no split 'heldout'; it has train"):
        open_emoji("all", data_dir, config, split="heldout")
    with pytest.raises(SdjaxError, match="subset is empty"):
        emoji_subset(" , ")


def test_prepared_emoji_need_no_font(config, data_dir, monkeypatch):
    open_emoji(data_dir=data_dir, config=config)
    monkeypatch.setattr("sdjax.data.emoji.EmojiFont", None)
    assert open_emoji(data_dir=data_dir, config=config)[0]["caption"] == "grinning face"


def test_what_is_not_installed_is_told_in_one_line_before_anything_is_made(
    tmp_path, monkeypatch, capfd, names, font
):
    monkeypatch.setattr(emoji_font, "_ROOTS", (str(tmp_path),))
    with pytest.raises(SdjaxError, match="apt install fonts-noto-color-emoji"):
        open_emoji(data_dir=str(tmp_path), config=EmojiConfig(name="a", names=names))
    monkeypatch.setattr(emoji_list, "_PLACES", ())
    with pytest.raises(SdjaxError, match="fonts-noto-color-emoji.*; and .*apt install unicode-data"):
        open_emoji(data_dir=str(tmp_path))
    with pytest.raises(SdjaxError, match="'hearts'; did you mean 'heart'"):
        config = EmojiConfig(name="b", names=names, font=font)
        open_emoji("hearts", data_dir=str(tmp_path), config=config)
    assert not list(tmp_path.iterdir())
    assert "Downloading" not in "".join(capfd.readouterr())


def test_a_font_is_found_in_a_subfolder(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_font, "_ROOTS", (str(tmp_path / "none"), str(tmp_path)))
    path = tmp_path / "truetype" / "noto" / "NotoColorEmoji.ttf"
    path.parent.mkdir(parents=True)
    path.touch()
    assert emoji_font.find_font() == str(path)


def test_other_files_are_refused(tmp_path, font):
    junk = tmp_path / "junk.txt"
    junk.write_text("hello")
    with pytest.raises(SdjaxError, match="lists no emoji"):
        read_emoji_test(junk)
    with pytest.raises(SdjaxError, match="cannot read the emoji names"):
        read_emoji_test(tmp_path / "gone.txt")
    with pytest.raises(SdjaxError, match="cannot open the font"):
        EmojiFont(junk)


def test_sequences_need_raqm(font, monkeypatch):
    monkeypatch.setattr(emoji_font.features, "check", lambda name: False)
    with pytest.raises(SdjaxError, match="lacks libraqm"):
        EmojiFont(font)


def test_what_a_font_lacks_is_not_drawn(font):
    drawer = EmojiFont(font)
    assert drawer.draw("😀", 32).size == (32, 32)
    assert drawer.draw("\U0001f9ff", 32) is None
    assert drawer.draw("👨‍🌾", 32) is None
