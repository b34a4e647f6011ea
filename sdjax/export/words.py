"""CLIP's byte-pair tokenizer in plain Python, for a runner without libraries.

`sdjax.text.tokenizer` reads the files of others, with transformers; this one reads what an export
wrote. Both give the same ids.
"""

import re
import unicodedata
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# The two marks, English endings, a run of letters, one digit, or a run of what is neither.
_WORDS = re.compile(
    rf"{re.escape(BEGIN)}|{re.escape(END)}|'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+"
)


class Words:
    """Texts to ids.

    given: of an export's settings: vocabulary, merges, symbols (a printable character for each
        byte, as the vocabulary spells them), length and pad.
    """

    def __init__(self, given: Mapping[str, Any]):
        self.vocabulary, self.length, self.pad = given["vocabulary"], given["length"], given["pad"]
        self.symbols = given["symbols"]
        self.ranks = {tuple(pair.split(" ")): i for i, pair in enumerate(given["merges"])}

    def ids(self, text: str) -> np.ndarray:
        """int32[1, length]: begin, the text, end and padding; a text that does not fit is cut, with
        a warning."""
        text = " ".join(unicodedata.normalize("NFC", text).split()).lower()
        found = [
            self.vocabulary.get(piece, self.vocabulary[END])
            for word in _WORDS.findall(text) for piece in self._pieces(word)
        ]  # fmt: skip
        if len(found) > self.length - 2:
            warnings.warn(f"only {self.length - 2} tokens of a prompt are read", stacklevel=2)
        row = [self.vocabulary[BEGIN], *found[: self.length - 2], self.vocabulary[END]]
        return np.int32([row + [self.pad] * (self.length - len(row))])

    def _pieces(self, word: str) -> list[str]:
        """A word's tokens: its bytes, of which the pair with the first merge is joined in turn."""
        if word in (BEGIN, END):
            return [word]
        pieces = [self.symbols[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            pairs = list(zip(pieces, pieces[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            joined, i = [], 0
            while i < len(pieces):
                two = tuple(pieces[i : i + 2]) == best
                joined.append("".join(pieces[i : i + 2]) if two else pieces[i])
                i += 2 if two else 1
            pieces = joined
        return pieces
