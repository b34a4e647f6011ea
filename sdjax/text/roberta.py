"""RoBERTa's byte-pair tokenizer, which CLAP's text encoder reads with."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.text.tokenizer import UNSET, valid

LENGTH = 512
SHORTEST = 16


class RobertaTokenizer:
    """Texts to ids, filled up with the padding's: transformers' tokenizer of a folder."""

    def __init__(self, tokenizer):
        self.theirs = tokenizer
        length = tokenizer.model_max_length
        self.max_length = LENGTH if length is None or length >= UNSET else int(length)
        self.pad_id = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.theirs)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "RobertaTokenizer":
        """Reads a folder with tokenizer.json, or vocab.json and merges.txt."""
        folder = Path(folder)
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import RobertaTokenizer as Theirs

        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise SdjaxError(
                f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json and merges.txt"
            )
        try:
            return cls(Theirs.from_pretrained(folder, local_files_only=True))
        except Exception as error:  # whatever transformers or its library in Rust meets
            reason = str(error).strip().partition("\n")[0]
            raise SdjaxError(
                f"the tokenizer in {folder} is damaged: {type(error).__name__}: {reason}"
            ) from error

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the files that transformers reads."""
        check_local(folder)
        self.theirs.save_pretrained(folder)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """int32[N, L]: L is the least power of two that the longest fits in, and at most the
        tokenizer's length.

        A text that does not fit is cut, and a warning names what was lost.
        """
        rows = [
            self.theirs(valid(text), verbose=False)["input_ids"] for text in texts
        ]
        for row in rows:
            if len(row) > self.max_length:
                lost = self.theirs.decode(row[self.max_length - 1 : -1])
                warnings.warn(
                    f"only {self.max_length} tokens of a prompt are read; cut off: {lost!r}",
                    stacklevel=2,
                )
                row[self.max_length - 1 :] = row[-1:]
        longest = max(SHORTEST, *map(len, rows))
        length = min(self.max_length, 1 << (longest - 1).bit_length())
        ids = np.full((len(rows), length), self.pad_id, np.int32)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row)] = row
        return ids
