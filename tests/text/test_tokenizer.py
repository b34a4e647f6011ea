"""The tokenizer against transformers' own, loaded from the files that ours writes."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import transformers

import sdjax
from sdjax.text.tokenizer import BEGIN, END
from sdjax.text.vocabulary import SMALLEST_VOCABULARY, byte_symbols, clip_tokenizer

CLIP_CASES = json.loads(
    Path(__file__).with_name("clip_token_cases.json").read_text(encoding="utf-8")
)

CAPTIONS = [
    "a large red circle above a small blue square on a yellow background",
    "smiling face with heart-eyes",
    "woman: blond hair, medium-light skin tone",
    "flag: Côte d’Ivoire",
    "1st place medal",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tokenizer"
    return sdjax.train_tokenizer(CAPTIONS * 5, folder, vocab_size=600, max_length=24), folder


def test_ids_equal_transformers(trained):
    tokenizer, folder = trained
    peer = transformers.CLIPTokenizer.from_pretrained(folder)
    prompts = [*CAPTIONS, "", "A  RED\tCircle!!", "emoji 🎉 unseen", "it's the cats' " * 9]
    theirs = peer(prompts, padding="max_length", max_length=24, truncation=True)["input_ids"]
    assert peer.model_max_length == 24 and peer.pad_token == END
    with pytest.warns(UserWarning, match="cut off"):
        ours = tokenizer.encode(prompts)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, theirs)


def test_reading_back_gives_the_same_tokenizer(trained):
    tokenizer, folder = trained
    again = sdjax.Tokenizer.from_pretrained(folder.parent)
    assert again.vocabulary == tokenizer.vocabulary and again.merges == tokenizer.merges
    assert again.max_length == 24
    np.testing.assert_array_equal(again.encode("red circle"), tokenizer.encode("red circle"))


# tokenizer_config.json and special_tokens_map.json beside vocab.json and merges.txt.
SETTINGS = {
    "nothing": ({}, None),
    "map alone, as SD2": ({}, {"pad_token": "!"}),
    "map against config, as SD2": ({"pad_token": END}, {"pad_token": "!"}),
    "map of SD1": (
        {"pad_token": END, "bos_token": {"__type": "AddedToken", "content": BEGIN}},
        {"pad_token": END, "bos_token": {"content": BEGIN, "normalized": True}},
    ),
    "config alone, as SDXL": (
        {"pad_token": "!", "added_tokens_decoder": {"0": {"content": "!", "special": True}}},
        {"pad_token": END},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_padding_is_what_transformers_reads(name, trained, tmp_path):
    trained[0].save_pretrained(tmp_path)
    config, specials = SETTINGS[name]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 12}))
    if specials is None:
        (tmp_path / "special_tokens_map.json").unlink()
    else:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(specials))
    peer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    prompts = ["a red circle", "red!"]
    theirs = peer(prompts, padding="max_length", max_length=12)["input_ids"]
    ours = sdjax.Tokenizer.from_pretrained(tmp_path)
    assert ours.pad_token == peer.pad_token == ("!" if "SD2" in name or "SDXL" in name else END)
    np.testing.assert_array_equal(ours.encode(prompts), theirs)


def test_files_that_transformers_writes(trained, tmp_path):
    tokenizer = trained[0].with_token("<cat>")
    tokenizer.clip.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    again = sdjax.Tokenizer.from_pretrained(tmp_path)
    assert again.vocabulary == tokenizer.vocabulary and again.merges == tokenizer.merges
    assert (again.max_length, again.learned) == (24, ("<cat>",))
    np.testing.assert_array_equal(again.encode("a <cat>!"), tokenizer.encode("a <cat>!"))


def test_vocabulary_is_bytes_merges_specials(trained):
    tokenizer, _ = trained
    tokens = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.get)
    assert list(tokenizer.vocabulary.values()) == list(range(len(tokenizer)))
    assert len(set(byte_symbols())) == 256 and tokens[:256] == byte_symbols()
    assert tokens[-2:] == [BEGIN, END]
    assert tokens[512:-2] == ["".join(pair) for pair in tokenizer.merges]
    assert len(tokenizer) <= 600
    ids = tokenizer.encode("red")[0]
    assert ids[0] == tokenizer.vocabulary[BEGIN] and (ids[2:] == tokenizer.vocabulary[END]).all()


def test_training_is_deterministic():
    first, second = (sdjax.train_tokenizer(CAPTIONS * 3, vocab_size=700) for _ in range(2))
    assert first.vocabulary == second.vocabulary


def test_padding_token_of_sd2():
    base = sdjax.train_tokenizer(CAPTIONS, vocab_size=520)
    tokenizer = sdjax.Tokenizer(base.vocabulary, base.merges, 10, pad_token="!")
    assert (tokenizer.encode("")[0, 2:] == 0).all()


def test_cut_words_are_named(trained):
    tokenizer, _ = trained
    with pytest.warns(UserWarning, match="background"):
        tokenizer.encode("red circle " * 20 + "background")


def test_bad_input(tmp_path):
    with pytest.raises(sdjax.SdjaxError, match="vocab.json"):
        sdjax.Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(sdjax.SdjaxError, match=str(SMALLEST_VOCABULARY)):
        sdjax.train_tokenizer(CAPTIONS, vocab_size=100)
    with pytest.raises(sdjax.SdjaxError, match="startoftext"):
        sdjax.Tokenizer({"a": 0, END: 1}, [])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab.json", "[1", "damaged"),
        ("vocab.json", '["a"]', "damaged"),
        ("vocab.json", '{"a": "b"}', "damaged"),
        ("tokenizer_config.json", "[]", "damaged"),
        ("tokenizer_config.json", '{"pad_token": 3}', "damaged: TypeError"),
        ("tokenizer_config.json", '{"pad_token": "unseen"}', "must hold 'unseen'"),
        ("tokenizer_config.json", '{"model_max_length": 2}', "at least 3, got 2"),
        ("tokenizer_config.json", '{"model_max_length": "long"}', "at least 3, got 'long'"),
        ("tokenizer.json", "{}", "damaged"),
    ],
)
def test_damaged_files_are_one_line(file, content, message, trained, tmp_path):
    trained[0].save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / file).write_text(content)
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        sdjax.Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_length_that_is_not_set_is_that_of_published_models(trained, tmp_path):
    trained[0].save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert sdjax.Tokenizer.from_pretrained(tmp_path).encode("red").shape == (1, 77)


@pytest.mark.parametrize("case", CLIP_CASES, ids=lambda case: case["prompt"][:24])
def test_published_vocabulary_gives_the_published_ids(case):
    tokenizer = clip_tokenizer()
    ids = case["ids"]
    expected = ids[:76] + ids[-1:] if len(ids) > 77 else ids + [ids[-1]] * (77 - len(ids))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(tokenizer.encode(case["prompt"])[0], expected)
    assert len(tokenizer) == 49408


WORDS = {"bad_prompt": 2, "bad_prompt_version2": 3, "toy": 1, "<cat-toy>": 2, "Easy": 2}
PROMPTS = {
    "bad_prompt_version2": "bad_prompt_version2 bad_prompt_version2_1 bad_prompt_version2_2",
    "a bad_prompt, red": "a bad_prompt bad_prompt_1, red",
    "bad_prompt bad_prompt_version2": (
        "bad_prompt bad_prompt_1 bad_prompt_version2 bad_prompt_version2_1 bad_prompt_version2_2"
    ),
    "bad_prompt_version2bad_prompt!": (
        "bad_prompt_version2 bad_prompt_version2_1 bad_prompt_version2_2bad_prompt bad_prompt_1!"
    ),
    "<cat-toy><cat-toy> toys": "<cat-toy> <cat-toy>_1<cat-toy> <cat-toy>_1 toys",
    "bad_prompt bad_prompt_1 red": "bad_prompt bad_prompt_1 red",  # spelled out already
    "bad_prompt_1 toyota": "bad_prompt_1 toyota",
    "A BAD_PROMPT and easy": "a bad_prompt bad_prompt_1 and Easy Easy_1",
}


@pytest.mark.parametrize("order", [1, -1])
def test_learned_words_are_the_longest_tokens(trained, order):
    """Each as transformers' own tokenizer reads the prompt that has all its tokens spelled out."""
    tokenizer = trained[0]
    peer = transformers.CLIPTokenizer.from_pretrained(trained[1])
    for word, count in list(WORDS.items())[::order]:
        tokenizer = tokenizer.with_token(word, count)
        peer.add_tokens([word, *(f"{word}_{i}" for i in range(1, count))])
    for prompt, spelled in PROMPTS.items():
        theirs = peer(spelled, padding="max_length", max_length=24)["input_ids"]
        np.testing.assert_array_equal(tokenizer.encode(prompt)[0], theirs, err_msg=prompt)


def test_words_that_would_be_another_ones_are_refused(trained):
    two = trained[0].with_token("cat", 2)
    for word, count, message in (
        ("cat_1", 1, "'cat_1' is known already"),
        ("CAT", 1, "'CAT' is known already"),
        ("cat_2", 1, "'cat_2' would be read as a vector of 'cat'"),
        ("Cat", 3, "known already"),
        (" ", 1, "must have a name"),
    ):
        with pytest.raises(sdjax.SdjaxError, match=message):
            two.with_token(word, count)
    with pytest.raises(sdjax.SdjaxError, match="'dog_2' would be read as a vector of 'dog'"):
        trained[0].with_token("dog_2").with_token("dog", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a \udcff", "found the byte 0xFF after 'a '"), ("red\ud83d", "found U\\+D83D after 'red'")],
)
def test_text_that_is_none_is_refused(trained, text, message):
    for use in (
        trained[0].encode,
        trained[0].with_token,
        lambda text: sdjax.train_tokenizer([text], vocab_size=520),
    ):
        with pytest.raises(sdjax.SdjaxError, match=message):
            use(text)
