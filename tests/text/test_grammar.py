"""The grammar of prompts: the web UI's published cases, and what it makes of brackets that do not
match."""

import pytest

from sdjax.errors import SdjaxError
from sdjax.text.grammar import composed, scheduled, weighted

WEIGHTS = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
    # Beyond the published ones: what its regular expressions make of these.
    "": [],
    "[less] (((": [("less", 1 / 1.1), (" ", 1.0)],
    "[unbalanced": [("unbalanced", 1 / 1.1)],
    "unopened) and ]": [("unopened) and ]", 1.0)],
    "a:1.2) b": [("a:1.2) b", 1.0)],
    "(a: 1.2 )b": [("a", 1.2), ("b", 1.0)],
    "(a:+1.5)(b:-.5)": [("a", 1.5), ("b", -0.5)],
    "(a:b)": [("a:b", 1.1)],
    r"a \\ \( \x": [(r"a \ ( x", 1.0)],
    "(a:0)": [("a", 0.0)],
}


@pytest.mark.parametrize("text", WEIGHTS)
def test_weights(text):
    (group,) = weighted(text)
    assert [piece.text for piece in group] == [text for text, _ in WEIGHTS[text]]
    assert [piece.weight for piece in group] == pytest.approx([w for _, w in WEIGHTS[text]])


def test_a_number_is_the_weight_itself_in_comfyui():
    text = "((house:1.3) on (a (hill):2)) by"
    pieces = weighted(text, absolute=True)[0]
    assert [piece.text for piece in pieces] == ["house", " on ", "a ", "hill", " by"]
    assert [piece.weight for piece in pieces] == pytest.approx([1.3, 1.1, 2, 2.2, 1])
    assert weighted(text)[0][0].weight == pytest.approx(1.3 * 1.1)


def test_break_parts_groups_also_within_brackets():
    texts = [[piece.text for piece in group] for group in weighted("a BREAK b(c\nBREAK d:2) BREAK")]
    assert texts == [["a"], ["b", "c"], ["d", ""], [""]]
    assert weighted("(c BREAK d:2)")[1][0].weight == 2
    assert weighted("BREAKFAST")[0][0].text == "BREAKFAST"
    assert [len(group) for group in weighted("BREAK BREAK")] == [1, 1, 1]


@pytest.mark.parametrize("tag", ["<lora:style:0.8>", "<Lyco:a b:1:0.5>", "<hypernet:x>"])
def test_files_are_not_loaded_by_prompts(tag):
    with pytest.raises(SdjaxError, match=f"{tag} in a prompt loads nothing here: give the file"):
        weighted(f"a (cat:1.2) {tag}")
    assert weighted("a <toy> and lora:style:0.8")[0][0].weight == 1


@pytest.mark.parametrize("number", ["1.2.3", ".", "9" * 400])
def test_a_weight_that_is_no_number(number):
    with pytest.raises(SdjaxError, match="is no number"):
        weighted(f"a (word:{number})")


# The steps after which a text ends, and the text, of ten.
SCHEDULES = {
    "test": [(10, "test")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a|(b:1.1)]": [(i, "(b:1.1)" if i % 2 == 0 else "a") for i in range(1, 11)],
    "[fe|]male": [(i, "male" if i % 2 == 0 else "female") for i in range(1, 11)],
    "[fe|||]male": [(i, "female" if i % 4 == 1 else "male") for i in range(1, 11)],
    # Beyond the published ones: what its grammar makes of these.
    "[a::0.3]b": [(3, "ab"), (10, "b")],
    "[a:b:1.0]": [(10, "a")],
    "[a:b:1]": [(1, "a"), (10, "b")],
    "[a:b:20]": [(10, "a")],
    "[a:b:0]": [(10, "b")],
    "[a:b:-3]": [(10, "b")],
    "[a:b:1e999]": [(10, "a")],
    "[a:b:c:3]": [(10, "[a:b:c:3]")],
    "[a|b:3]": [(10, "[a|b:3]")],
    "a | [b:3]": [(10, "a | [b:3]")],
    "a [b:3] \\": [(10, "a [b:3] \\")],
    r"a \[b:3]": [(10, r"a \[b:3]")],
    "(a:[b:3])": [(3, "(a:)"), (10, "(a:b)")],
    "(a:b:c) [d:3]": [(3, "(a:b:c) "), (10, "(a:b:c) d")],
    "[(a [b:3]": [(3, "[(a "), (10, "[(a b")],
    "[[a|b]:c:2]": [(1, "a"), (2, "b"), (10, "c")],
}


@pytest.mark.parametrize("text", SCHEDULES)
def test_schedules(text):
    schedule = scheduled(text, 10)
    expected, start = [], 0
    for end, words in SCHEDULES[text]:
        expected += [words] * (end - start)
        start = end
    assert [schedule.texts[i] for i in schedule.index] == expected
    assert len(set(schedule.texts)) == len(schedule.texts)
    assert schedule.texts[0] == expected[0]


def test_the_example_of_the_web_ui():
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]"
    )
    schedule = scheduled(text, 100)
    assert [schedule.texts[schedule.index[i]] for i in (24, 49, 59, 74, 99)] == [
        "fantasy landscape with a mountain and an oak in foreground shoddy",
        "fantasy landscape with a lake and an oak in foreground in background shoddy",
        "fantasy landscape with a lake and an oak in foreground in background masterful",
        "fantasy landscape with a lake and an oak in background masterful",
        "fantasy landscape with a lake and a christmas tree in background masterful",
    ]
    assert [schedule.index.count(i) for i in range(5)] == [25, 25, 10, 15, 25]


def test_a_second_pass_counts_on():
    assert scheduled("a [b:.5] c", 10, earlier=10).texts == ("a b c",)
    second = scheduled("a [b:1.5] c", 10, earlier=10)
    assert (second.texts, second.index) == (("a  c", "a b c"), (0,) * 5 + (1,) * 5)
    assert scheduled("a [b:13]", 10, earlier=10).index == (0,) * 3 + (1,) * 7


def test_deep_nesting():
    deep = "[" * 3000 + "a" + ":1]" * 3000
    assert scheduled(deep, 3).texts == ("", "a")
    assert scheduled("(" * 3000, 3).texts == ("(" * 3000,)


def test_texts_joined_by_and():
    assert composed("a cat :1.2 AND a dog AND a penguin:-.5 ") == [
        ("a cat", 1.2),
        (" a dog", 1.0),
        (" a penguin", -0.5),
    ]
    assert composed("a BAND, SANDY\nAND\n(a:1.2)") == [("a BAND, SANDY", 1.0), ("\n(a:1.2)", 1.0)]
    assert composed("") == [("", 1.0)]
    with pytest.raises(SdjaxError, match="finite"):
        composed("a:" + "9" * 400)
