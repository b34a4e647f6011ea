"""What prompts say to each branch of each image: texts, and which of them at each evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdjax.pipeline.plans.request import Request
from sdjax.text.chunks import Weighting
from sdjax.text.grammar import Composed, composed, scheduled, weighted

Said = tuple[str, ...] | None
"""A text for each text encoder; None is no prompt."""


class Texts(NamedTuple):
    """The texts of B branches of each image: those of the negative prompt, then K of prompts."""

    texts: np.ndarray
    """`Said` [images, B, T]: those of a branch, the last again to fill up."""
    which: np.ndarray
    """int32[images, B, evaluations]: which of the T, at each evaluation of the network."""
    shares: np.ndarray
    """[images, K]: what each prompt counts; 0 where an image has fewer than K."""
    groups: np.ndarray
    """int[K]: 0 for those of the prompt, then the number of the region that they are for."""


def parts(prompt: str, weighting: Weighting | None) -> list[Composed]:
    """The prompts that AND joins, each with what it counts."""
    return [Composed(prompt, 1.0)] if weighting is None else composed(prompt)


def read(
    asked: Request,
    groups: Sequence[Sequence[Sequence[Composed]]],
    copies: int,
    evaluations: Sequence[int],
    encoders: int,
) -> Texts:
    """The texts of all images.

    groups: the `parts` of each prompt, then those of each region, for each prompt. copies:
    branches that a negative prompt is for. evaluations: each image's. A negative prompt is not
    split at AND, and a second prompt goes with each part. Raises SdjaxError
    for weights that are no numbers.
    """
    most = [max(map(len, group)) for group in groups]
    lines, shares = [], []
    for i in range(len(asked.prompt)):
        line, share = [(asked.negatives[i], asked.negatives_2[i])] * copies, []
        for number, group in enumerate(groups):
            own, spare = group[i], most[number] - len(group[i])
            second = None if number else asked.prompts_2[i]
            line += [(part.text, second) for part in [*own, *own[-1:] * spare]]
            share += [part.weight for part in own] + [0.0] * spare
        lines += [line] * asked.count
        shares += [share] * asked.count
    known = {}
    for line, count in zip(lines, evaluations, strict=True):
        for said in line:
            known[said, count] = _told(said, count, encoders, asked.weighting)
    for text in {text for one in known.values() for said in set(one) if said for text in said}:
        _plain(text, asked.weighting)
    different = {key: list(dict.fromkeys(one)) for key, one in known.items()}
    # A power of two, so that few programs do.
    length = 1 << (max(map(len, different.values())) - 1).bit_length()
    texts = np.empty((len(lines), copies + sum(most), length), object)
    which = np.zeros((*texts.shape[:2], max(evaluations)), np.int32)
    for image, (line, count) in enumerate(zip(lines, evaluations, strict=True)):
        for branch, said in enumerate(line):
            own = different[said, count]
            for i in range(length):
                texts[image, branch, i] = own[min(i, len(own) - 1)]
            which[image, branch, :count] = [own.index(one) for one in known[said, count]]
    return Texts(texts, which, np.array(shares), np.repeat(np.arange(len(most)), most))


def _told(
    said: tuple[str | None, str | None], count: int, encoders: int, weighting: Weighting | None
) -> list[Said]:
    """What each of `count` evaluations is told; a second text is the first where it is None."""
    if said == (None, None):
        return [None] * count
    first, second = said[0] or "", said[1]
    pair = (first, first if second is None else second)[:encoders]
    if weighting is None:
        return [pair] * count
    schedules = [scheduled(text, count) for text in pair]
    return list(zip(*([one.texts[i] for i in one.index] for one in schedules), strict=True))


def plain(said: Said, weighting: Weighting | None) -> str:
    """Texts without the signs that weigh them."""
    return " ".join(dict.fromkeys(_plain(text, weighting) for text in said or ("",)))


def _plain(text: str, weighting: Weighting | None) -> str:
    if weighting is None:
        return text
    groups = weighted(text, weighting == "comfy")
    return " ".join("".join(piece.text for piece in group) for group in groups)
