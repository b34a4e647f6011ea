"""The captions that a model was trained on: kept beside it, and what they say of a prompt."""

import re
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from sdjax.errors import SdjaxError

CAPTIONS = "captions.txt"
"""A file of a model's folder: all captions that it was trained on, one a line."""
MOST = 20_000
"""Captions kept of a large set, and those with further words."""
# They say nothing of what is in a picture.
_SMALL_WORDS = frozenset("a an the of on in at to and or with without for no from by is".split())


def read_captions(folder: Path) -> tuple[str, ...]:
    """The captions of a model's folder; none where they were not kept."""
    path = folder / CAPTIONS
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SdjaxError(f"cannot read the captions in {path}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def distinct(captions: Iterable[str], most: int = MOST) -> tuple[str, ...]:
    """Each caption once, without spaces around it; of those after the first `most` only the ones
    with a word that none before has.
    """
    kept, words = {}, set()
    for caption in map(" ".join, map(str.split, captions)):
        if caption and caption not in kept:
            own = _words(caption)
            if len(kept) < most or not own <= words:
                kept[caption] = True
                words |= own
    return tuple(kept)


def warn_of_unseen(prompts: Sequence[str], captions: Sequence[str], learned: Sequence[str] = ()):
    """One warning of all prompts none of whose words the model ever saw.

    learned: words that it was taught beside its captions.
    """
    seen = set().union(*map(_words, (*captions, *learned)))
    unseen = [prompt for prompt in dict.fromkeys(prompts) if seen.isdisjoint(_words(prompt))]
    if captions and (unseen := [prompt for prompt in unseen if _words(prompt)]):
        near = get_close_matches(unseen[0], captions, 3, 0.4)
        hint = f"; the nearest of its captions: {', '.join(near)}" if near else ""
        warnings.warn(
            f"the model was trained on no word of {', '.join(map(repr, unseen[:3]))}"
            f"{' …' if len(unseen) > 3 else ''}: expect no such picture{hint}",
            stacklevel=4,
        )


def _words(text: str) -> set[str]:
    """Words that say what is in a picture, in lower case."""
    return set(re.findall(r"\w+", text.lower())) - _SMALL_WORDS
