"""The grammar of prompts, that of AUTOMATIC1111's web UI: text to values.

Three readings follow one another: `composed` splits a prompt at AND, `scheduled` resolves what
changes from step to step, and `weighted` reads the brackets that are left. None of them ever
fails for brackets that do not match: these are read as the web UI reads them.
"""

import math
import re
from typing import NamedTuple

from sdjax.errors import SdjaxError

EMPHASIS = 1.1  # what a pair of round brackets multiplies by, and a pair of square ones divides by

_AND = re.compile(r"\bAND\b")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_SHARE = re.compile(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*\Z")
_MARKS = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]")
_WHEN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
"""What the web UI takes out of a prompt, to load a file by it."""
_BRACKETS = re.compile(
    r"\\[()\[\]\\]?|[(\[]|:\s*(?P<weight>[-+]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:"
)


class Composed(NamedTuple):
    """One of the texts that AND joins, and the weight of its prediction."""

    text: str
    weight: float


def composed(prompt: str) -> list[Composed]:
    """The texts of a prompt that AND joins: "a cat AND a dog:0.5".

    `:weight` at a text's end is the weight of its prediction, also where there is no AND.
    """
    parts = []
    for text in _AND.split(prompt):
        share = _SHARE.search(text)
        weight = float(share[1]) if share else 1.0
        if not math.isfinite(weight):
            raise SdjaxError(f"a prompt's weight must be finite, got {share[1][:20]}…")
        parts.append(Composed(text[: share.start()] if share else text.rstrip(), weight))
    return parts


class Schedule(NamedTuple):
    """What a prompt says at each evaluation of the network."""

    texts: tuple[str, ...]
    """The distinct texts, in the order in which they first come."""
    index: tuple[int, ...]
    """For each evaluation the place of its text in `texts`."""


class _Change(NamedTuple):
    """`[before:after:when]`."""

    before: list
    after: list
    when: str

    def at(self, step: int, steps: int, earlier: int) -> list:
        value = float(self.when)
        if "." in self.when:
            last = (value - bool(earlier)) * steps
        else:
            last = value - earlier
        return self.before if step <= int(max(0, min(steps, last))) else self.after


class _Alternation(NamedTuple):
    """`[a|b|…]`."""

    options: list[list]

    def at(self, step: int, steps: int, earlier: int) -> list:
        return self.options[(step - 1) % len(self.options)]


class _Open:
    """A bracket that is not closed yet, and what came since: parts between `:` and `|`."""

    def __init__(self, bracket: str):
        self.bracket, self.parts, self.separators = bracket, [[]], []

    def literal(self) -> list:
        """What came, as text."""
        nodes = [self.bracket, *self.parts[0]]
        for separator, part in zip(self.separators, self.parts[1:], strict=True):
            nodes += [separator, *part]
        return nodes

    def closed(self, bracket: str) -> list | None:
        """What the pair of brackets means; None where they are no pair."""
        kinds = set(self.separators)
        if self.bracket + bracket == "()":
            fits = kinds <= {":"} and len(self.separators) < 2
            return [*self.literal(), bracket] if fits else None
        if self.bracket + bracket != "[]":
            return None
        if not kinds:
            return [*self.literal(), bracket]
        if kinds == {"|"}:
            return [_Alternation(self.parts)]
        *parts, last = self.parts
        when = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        if kinds != {":"} or len(parts) > 2 or when is None:
            return None
        return [_Change(parts[0] if len(parts) == 2 else [], parts[-1], when[1])]


def _parsed(text: str) -> list | None:
    """A text's plain pieces, changes and alternations; None for what the web UI takes literally.

    That is a text with `|` outside square brackets, or a backslash that escapes nothing. One
    bracket that finds no partner leaves all that are open around it without one.
    """
    root, stack, position = [], [], 0

    def give_up():
        for one in stack:
            root.extend(one.literal())
        stack.clear()

    while position < len(text):
        mark = _MARKS.match(text, position)
        if mark is None:
            return None
        mark, position = mark[0], mark.end()
        if mark in ("(", "["):
            stack.append(_Open(mark))
        elif mark in (":", "|") and stack:
            stack[-1].separators.append(mark)
            stack[-1].parts.append([])
        elif mark in (")", "]") and stack:
            nodes = stack[-1].closed(mark)
            if nodes is None:
                give_up()
                root.append(mark)
            else:
                stack.pop()
                (stack[-1].parts[-1] if stack else root).extend(nodes)
        else:
            (stack[-1].parts[-1] if stack else root).append(mark)
    give_up()
    return None if "|" in root else root


def scheduled(text: str, evaluations: int, earlier: int = 0) -> Schedule:
    """Resolves `[from:to:when]`, `[to:when]`, `[from::when]` and `[a|b]`, nested as one likes.

    The first `when` evaluations see `from`. `when` with a decimal point is a fraction of the
    evaluations, without one it is their number. `[a|b]` alternates with each evaluation.

    evaluations: how many the network is asked for; a sampler of two a step has twice its steps.
    earlier: evaluations of a first pass that these follow (hires fix): a number counts on from
        them, and a fraction means this pass from 1 on.
    """
    tree = _parsed(text)
    if tree is None:
        return Schedule((text,), (0,) * evaluations)
    places: dict[str, int] = {}
    index = []
    for step in range(1, evaluations + 1):
        pieces, rest = [], tree[::-1]
        while rest:
            node = rest.pop()
            if isinstance(node, str):
                pieces.append(node)
            else:
                rest += reversed(node.at(step, evaluations, earlier))
        index.append(places.setdefault("".join(pieces), len(places)))
    return Schedule(tuple(places), tuple(index))


class Weighted(NamedTuple):
    """A piece of text and the weight of its tokens."""

    text: str
    weight: float


def weighted(text: str, absolute: bool = False) -> list[list[Weighted]]:
    r"""The pieces of a text with their weights, in groups that BREAK parts.

    `(a)` multiplies by 1.1, `[a]` divides by it, `(a:1.3)` multiplies by 1.3; weights of nested
    brackets multiply. A bracket that is never closed reaches to the end; one that was never opened
    is text, as are `\(`, `\)`, `\[`, `\]` and `\\`. Neighbours of one weight are one piece.

    absolute: a number is the weight itself whatever brackets are around, as in ComfyUI.
    Raises SdjaxError for a weight such as 1.2.3, which is no number, and for `<lora:name:1>`.
    """
    if found := NETWORK.search(text):
        raise SdjaxError(
            f"{found[0]} in a prompt loads nothing here: give the file to load_lora, on the "
            "command line as --lora FILE:WEIGHT, and leave it out of the prompt"
        )
    pieces: list[tuple[str | None, float, bool]] = []  # None is BREAK; whether the weight is final
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float, final: bool = False):
        for i in range(start, len(pieces)):
            piece, weight, settled = pieces[i]
            pieces[i] = (piece, weight if settled else weight * factor, settled or final)

    for found in _BRACKETS.finditer(text):
        mark, number = found[0], found["weight"]
        if mark.startswith("\\"):
            pieces.append((mark[1:], 1.0, False))
        elif mark in opened:
            opened[mark].append(len(pieces))
        elif number is not None and opened["("]:
            multiply(opened["("].pop(), _number(number, text), absolute)
        elif mark == ")" and opened["("]:
            multiply(opened["("].pop(), EMPHASIS)
        elif mark == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / EMPHASIS)
        else:
            first, *others = _BREAK.split(mark)
            pieces.append((first, 1.0, False))
            for other in others:
                pieces += [(None, 1.0, False), (other, 1.0, False)]
    for start in opened["("]:
        multiply(start, EMPHASIS)
    for start in opened["["]:
        multiply(start, 1 / EMPHASIS)

    groups: list[list[Weighted]] = [[]]
    for piece, weight, _ in pieces:
        group = groups[-1]
        if piece is None:
            groups.append([])
        elif group and group[-1].weight == weight:
            group[-1] = Weighted(group[-1].text + piece, weight)
        else:
            group.append(Weighted(piece, weight))
    return groups


def _number(number: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SdjaxError(
            f"the weight {number[:20]!r} of a prompt is no number: write (word:1.2) in {text!r}"
        )
    return value
