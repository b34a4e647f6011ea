"""CLIP's byte-pair tokenizer: prompts to ids.

The tokenizer itself is transformers' `CLIPTokenizer`, built from a `vocab.json` and a
`merges.txt`.
"""

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError

BEGIN = "<|startoftext|>"
END = "<|endoftext|>"


class Tokenizer:
    """Prompts to CLIP ids of a fixed length.

    vocabulary: token to id. merges: pairs of tokens, the first to be merged first.
    max_length: ids a prompt, begin and end tokens included (77 for CLIP).
    pad_token: fills up a short prompt; SD1 pads with the end token, SD2 with "!" (id 0).
    learned: words of textual inversion, whose ids follow the vocabulary's.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: Sequence[tuple[str, str]],
        max_length: int = 77,
        pad_token: str = END,
        learned: Sequence[str] = (),
    ):
        # It would tell, at every start, that PyTorch is missing; nothing here wants it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import CLIPTokenizer

        for token in (BEGIN, END, pad_token):
            if token not in vocabulary:
                raise SdjaxError(f"a CLIP vocabulary must hold {token!r}; this one does not")
        if max_length < 3:
            raise SdjaxError(f"max_length must be at least 3, got {max_length}")
        self.vocabulary = dict(vocabulary)
        self.merges = [tuple(pair) for pair in merges]
        self.max_length = max_length
        self.pad_token = pad_token
        self.clip = CLIPTokenizer(
            vocab=self.vocabulary,
            merges=self.merges,
            pad_token=pad_token,
            model_max_length=max_length,
        )
        self.learned = tuple(learned)
        if self.learned:
            self.clip.add_tokens(list(self.learned))

    @property
    def pad_id(self) -> int:
        """Id of the token that fills up a short prompt."""
        return self.vocabulary[self.pad_token]

    def __len__(self) -> int:
        return len(self.vocabulary) + len(self.learned)

    def with_token(self, token: str, count: int = 1) -> "Tokenizer":
        """A tokenizer that knows one more word, of `count` ids: `token`, `token_1`, …"""
        if token in self.vocabulary or token in self.learned:
            raise SdjaxError(f"the word {token!r} is known already: choose another token")
        learned = (*self.learned, token, *(f"{token}_{i}" for i in range(1, count)))
        return Tokenizer(
            self.vocabulary, self.merges, self.max_length, self.pad_token, learned
        )

    def _spelled_out(self, prompt: str) -> str:
        """The prompt with each learned word of several ids as all its tokens."""
        for token in self.learned:
            family = [t for t in self.learned if re.fullmatch(re.escape(token) + r"_\d+", t)]
            if family and family[0] not in prompt:
                prompt = prompt.replace(token, " ".join([token, *family]))
        return prompt

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Reads vocab.json, merges.txt and, where present, tokenizer_config.json of a folder.

        `folder` may be the tokenizer's own or a pipeline's that has it as `tokenizer/`.
        """
        folder = Path(folder)
        folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
        try:
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            settings = folder / "tokenizer_config.json"
            config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        except OSError as error:
            raise SdjaxError(
                f"no tokenizer in {folder}: cannot read {Path(error.filename).name} "
                f"({error.strerror}); expected vocab.json and merges.txt"
            ) from error
        except ValueError as error:
            raise SdjaxError(f"the tokenizer in {folder} is damaged: {error}") from error
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#ver")]
        if not isinstance(vocabulary, dict) or any(len(pair) != 2 for pair in merges):
            raise SdjaxError(f"the tokenizer in {folder} is damaged: not a CLIP vocabulary")
        pad = config.get("pad_token", END)
        pad = pad["content"] if isinstance(pad, dict) else pad
        added = config.get("added_tokens_decoder", {})
        learned = [
            added[i]["content"] for i in sorted(added, key=int) if int(i) >= len(vocabulary)
        ]
        return cls(vocabulary, merges, config.get("model_max_length", 77), pad or END, learned)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the files that transformers' `CLIPTokenizer.from_pretrained` reads."""
        folder = Path(folder)
        specials = {
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": self.pad_token,
            "unk_token": END,
        }
        config = {
            **specials,
            "model_max_length": self.max_length,
            "tokenizer_class": "CLIPTokenizer",
        }
        if self.learned:
            first = len(self.vocabulary)
            config["added_tokens_decoder"] = {
                str(first + i): {"content": token, "special": False, "normalized": True}
                for i, token in enumerate(self.learned)
            }
        merges = "\n".join(["#version: 0.2", *map(" ".join, self.merges)]) + "\n"
        files = {
            "vocab.json": json.dumps(self.vocabulary, ensure_ascii=False),
            "merges.txt": merges,
            "special_tokens_map.json": json.dumps(specials, indent=2),
            "tokenizer_config.json": json.dumps(config, indent=2),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SdjaxError(f"cannot write the tokenizer to {folder}: {error.strerror}") from error

    def encode(self, prompts: str | Sequence[str]) -> np.ndarray:
        """Ids int32[B, max_length] of one prompt or several, begin and end tokens included.

        A prompt that does not fit is cut, and a warning names the words that were lost.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        room = self.max_length - 2
        begin, end = self.vocabulary[BEGIN], self.vocabulary[END]
        ids = np.full((len(prompts), self.max_length), self.pad_id, np.int32)
        prompts = [self._spelled_out(prompt) for prompt in prompts]
        encoded = self.clip(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        for row, tokens in zip(ids, encoded, strict=True):
            if len(tokens) > room:
                lost = self.clip.decode(tokens[room:])
                warnings.warn(
                    f"only {room} tokens of a prompt are read; cut off: {lost!r}", stacklevel=2
                )
                tokens = tokens[:room]
            row[: len(tokens) + 2] = [begin, *tokens, end]
        return ids
