"""Chunks of token ids, by the web UI's rules, with CLIP's own vocabulary: 75 tokens a chunk."""

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.text.chunks import chunked, literal_chunks
from sdjax.text.tokenizer import BEGIN, END
from sdjax.text.vocabulary import clip_tokenizer


def tokens_of(chunks, tokenizer, n=0):
    """For each chunk what it holds between begin and end tokens, as ids and weights."""
    end = tokenizer.vocabulary[END]
    result = []
    for ids, weights in zip(chunks.ids[n], chunks.weights[n], strict=True):
        assert ids[0] == tokenizer.vocabulary[BEGIN]
        last = list(ids).index(end)
        assert (ids[last + 1 :] == tokenizer.pad_id).all()
        assert weights[0] == 1 and (weights[last:] == 1).all()
        result.append((list(ids[1:last]), list(weights[1:last])))
    return result


def counts(text):
    """How many tokens each chunk holds."""
    tokenizer = clip_tokenizer()
    return [len(ids) for ids, _ in tokens_of(chunked([[text]], [tokenizer])[0], tokenizer)]


def words(word, count):
    return " ".join([word] * count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0]),
        (words("red", 75), [75]),
        (words("red", 76), [75, 1]),
        (words("red", 160), [75, 75, 10]),
        # The comma at place 70, then five more words: these move to the next chunk.
        (words("red", 70) + "," + words(" blue", 10), [71, 10]),
        # Twenty words after the comma and itself are too far, nineteen move.
        (words("red", 54) + "," + words(" blue", 30), [75, 10]),
        (words("red", 55) + "," + words(" blue", 30), [56, 30]),
        # A comma that does not fit itself moves nothing.
        (words("red", 75) + ", blue", [75, 2]),
        (words("red", 74) + ", blue", [75, 1]),
        (words("red", 70) + ", a,", [73]),
        # After words moved the comma is behind them.
        (words("red", 70) + "," + words(" blue", 100), [71, 75, 25]),
        ("red BREAK blue blue", [1, 2]),
        ("red BREAK", [1]),
        ("BREAK red", [0, 1]),
        ("red BREAK BREAK blue", [1, 0, 1]),
        ("BREAK", [0]),
        (words("red", 70) + ", BREAK" + words(" blue", 75), [71, 75]),
    ],
)
def test_how_many_tokens_each_chunk_holds(text, expected):
    assert counts(text) == expected


@pytest.mark.parametrize("pad", [END, "!"])
def test_one_chunk_is_what_the_tokenizer_gives(pad):
    tokenizer = clip_tokenizer(pad)
    text = "a photo of an astronaut, riding a horse"
    for weighting in ("a1111", None):
        (chunks,) = chunked([[text]], [tokenizer], weighting)
        np.testing.assert_array_equal(chunks.ids[:, 0], tokenizer.encode(text))
        assert (chunks.weights == 1).all() and not chunks.lowered.any()
        np.testing.assert_array_equal(chunks.empty, tokenizer.encode(""))


def test_weights_go_to_their_tokens():
    tokenizer = clip_tokenizer()
    (chunks,) = chunked([["a (red house:1.5), [dim] (sky:0.5)"]], [tokenizer])
    ((ids, weights),) = tokens_of(chunks, tokenizer)
    assert ids == list(tokenizer.encode("a red house, dim sky")[0, 1:7])
    np.testing.assert_allclose(weights, [1, 1.5, 1.5, 1, 1 / 1.1, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(chunks.lowered[0, 0, 1:8], [0, 0, 0, 0, 1, 2, 0])


def test_numbers_of_comfyui_and_of_none():
    tokenizer = clip_tokenizer()
    text = "((red:1.5) cat)"
    weights = {
        way: chunked([[text]], [tokenizer], way)[0].weights[0, 0, 1:3]
        for way in ("a1111", "comfy", "compel")
    }
    np.testing.assert_allclose(weights["a1111"], [1.65, 1.1], rtol=1e-6)
    np.testing.assert_allclose(weights["comfy"], [1.5, 1.1], rtol=1e-6)
    np.testing.assert_allclose(weights["compel"], [1.65, 1.1], rtol=1e-6)
    (literal,) = chunked([[text]], [tokenizer], None)
    np.testing.assert_array_equal(literal.ids[:, 0], tokenizer.encode(text))
    with pytest.warns(UserWarning, match="cut off"):
        assert chunked([[words("red", 80)]], [tokenizer], None)[0].ids.shape == (1, 1, 77)


def test_learned_words_stay_whole():
    tokenizer = clip_tokenizer().with_token("<toy>", 4)
    first = len(tokenizer.vocabulary)
    toy = [first, first + 1, first + 2, first + 3]
    (chunks,) = chunked([[words("red", 72) + " (<toy>:1.2) red"]], [tokenizer])
    (before, _), (after, weights) = tokens_of(chunks, tokenizer)
    assert len(before) == 72 and after[:4] == toy and len(after) == 5
    np.testing.assert_allclose(weights, [1.2] * 4 + [1], rtol=1e-6)
    # They are moved with what follows a comma.
    (chunks,) = chunked([[words("red", 68) + ", <toy> blue blue blue"]], [tokenizer])
    (before, _), (after, _) = tokens_of(chunks, tokenizer)
    assert len(before) == 69 and after[:4] == toy and len(after) == 7
    with pytest.raises(SdjaxError, match="76 vectors does not fit into the 75"):
        chunked([["<big>"]], [clip_tokenizer().with_token("<big>", 76)])


def test_two_encoders_have_the_same_chunks():
    """A word of more vectors in one encoder, another text in the other: empty chunks fill up."""
    one, two = clip_tokenizer().with_token("<toy>", 40), clip_tokenizer("!").with_token("<toy>", 1)
    first, second = chunked([["<toy> <toy>"], ["<toy> <toy>"]], [one, two])
    assert first.ids.shape == second.ids.shape == (1, 2, 77)
    assert [len(ids) for ids, _ in tokens_of(first, one)] == [40, 40]
    assert [len(ids) for ids, _ in tokens_of(second, two)] == [2, 0]
    first, second = chunked([["red"], ["blue BREAK blue BREAK blue"]], [one, two])
    assert [len(ids) for ids, _ in tokens_of(first, one)] == [1, 0, 0]


def test_texts_of_other_lengths_are_repeated_until_they_agree():
    tokenizer = clip_tokenizer()
    texts = ["red", "a BREAK b c", "a BREAK b c BREAK (d e f:2)"]
    (chunks,) = chunked([texts], [tokenizer])
    assert chunks.ids.shape == (3, 6, 77)
    for n, expected in enumerate(([1] * 6, [1, 2] * 3, [1, 2, 3] * 2)):
        assert [len(ids) for ids, _ in tokens_of(chunks, tokenizer, n)] == expected
    np.testing.assert_array_equal(chunks.weights[2, 2], chunks.weights[2, 5])
    assert (chunks.weights[2, 2, 1:4] == 2).all()
    (alone,) = chunked([texts[1:2]], [tokenizer])
    np.testing.assert_array_equal(chunks.ids[1], np.tile(alone.ids[0], (3, 1)))


def test_another_way_of_weighting_is_refused():
    with pytest.raises(SdjaxError, match="must be a1111, comfy, compel or None"):
        chunked([["red"]], [clip_tokenizer()], "invoke")


def test_texts_as_they_are_are_parted_where_prompts_are():
    tokenizer, text = clip_tokenizer(), words("red", 70) + "," + words(" blue", 100)
    found = literal_chunks([text, "red"], tokenizer, 4)
    prompts = chunked([[text], ["red"]], [tokenizer] * 2)
    np.testing.assert_array_equal(found[0, :3], prompts[0].ids[0])
    np.testing.assert_array_equal(found[1, 0], prompts[1].ids[0, 0])
    empty = tokenizer.encode([""])[0]
    for row in (found[0, 3], *found[1, 1:]):
        np.testing.assert_array_equal(row, empty)
    # Brackets and BREAK are text, as in `encode`.
    literal = literal_chunks(["girl_(series) [x] BREAK"], tokenizer, 1)
    np.testing.assert_array_equal(literal[:, 0], tokenizer.encode(["girl_(series) [x] BREAK"]))
    with pytest.warns(UserWarning, match="only 2 chunks of a text are read; cut off: 'blue"):
        literal_chunks([text], tokenizer, 2)
