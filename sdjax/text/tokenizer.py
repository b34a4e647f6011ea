"""CLIP's byte-pair tokenizer: prompts to ids.

The tokenizer itself is transformers' `CLIPTokenizer`, which also reads the files: what they say
of the padding is spread over three of them, by rules that have changed.
"""

import itertools
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.words import told_words

BEGIN = "<|startoftext|>"
END = "<|endoftext|>"
LENGTH = 77  # of published models, where a tokenizer's files do not say
UNSET = 1e20  # from here on a length is transformers' mark for none


def clip_class():
    """transformers' `CLIPTokenizer`, imported when it is first needed."""
    # It would tell, at every start, that PyTorch is missing; nothing here wants it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    # Earlier versions of 5 call tokenizers in a way that these announce to end.
    warnings.filterwarnings("ignore", r"Deprecated in 0\.9\.0: BPE", DeprecationWarning)
    return CLIPTokenizer


def valid(text: str) -> str:
    """The text itself; SdjaxError where it holds a byte or half a character that is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Python keeps an invalid byte of the command line, or of a file, as a lone surrogate.
        code = ord(text[error.start])
        what = f"the byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        raise SdjaxError(
            f"text must be Unicode, in UTF-8: found {what} after "
            f"{text[max(0, error.start - 20) : error.start]!r}"
        ) from error
    return text


def _followers(learned: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each learned word the names of its further vectors: `word_1`, `word_2`, … .

    Names alone tell, as in diffusers: folders hold nothing else.
    """
    known = set(learned)
    return {
        word: tuple(
            itertools.takewhile(known.__contains__, (f"{word}_{i}" for i in itertools.count(1)))
        )
        for word in learned
    }


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
        max_length: int = LENGTH,
        pad_token: str = END,
        learned: Sequence[str] = (),
    ):
        for token in (BEGIN, END, pad_token):
            if token not in vocabulary:
                raise SdjaxError(f"a CLIP vocabulary must hold {token!r}; this one does not")
        if not isinstance(max_length, int) or max_length < 3:
            raise SdjaxError(f"max_length must be an integer of at least 3, got {max_length!r}")
        self.vocabulary = dict(vocabulary)
        self.merges = [tuple(pair) for pair in merges]
        self.max_length = max_length
        self.pad_token = pad_token
        self.clip = clip_class()(
            vocab=self.vocabulary,
            merges=self.merges,
            pad_token=pad_token,
            model_max_length=max_length,
        )
        self.learned = tuple(learned)
        self._followers = _followers(self.learned)
        if self.learned:
            self.clip.add_tokens(list(self.learned))

    @property
    def pad_id(self) -> int:
        """Id of the token that fills up a short prompt."""
        return self.vocabulary[self.pad_token]

    def __len__(self) -> int:
        return len(self.vocabulary) + len(self.learned)

    def with_token(self, token: str, count: int = 1) -> "Tokenizer":
        """A tokenizer that knows one more word, of `count` ids: `token`, `token_1`, …

        Raises SdjaxError for a word that is known, or that files would give to another word.
        """
        words = [token, *(f"{token}_{i}" for i in range(1, count))]
        if not token.strip():
            raise SdjaxError("a learned word must have a name: choose a token")
        known = {self.normalized(word) for word in self.learned}
        for word in words:
            # Prompts are read without regard to case.
            if word in self.vocabulary or self.normalized(word) in known:
                raise SdjaxError(f"the word {word!r} is known already: choose another token")
        learned = (*self.learned, *words)
        own = dict.fromkeys(learned, ()) | self._followers | {token: tuple(words[1:])}
        for word, followers in _followers(learned).items():
            if followers != own[word]:
                raise SdjaxError(
                    f"{followers[-1]!r} would be read as a vector of {word!r}: load {token!r} "
                    "under another token"
                )
        return Tokenizer(
            self.vocabulary, self.merges, self.max_length, self.pad_token, learned
        )

    def normalized(self, text: str) -> str:
        """Text as prompts are read: of one case, its spaces made one, in Unicode's form C."""
        return self.clip.backend_tokenizer.normalizer.normalize_str(valid(text))

    def words(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """For each text its ids without begin and end tokens, in pieces that must stay whole.

        A learned word's ids are one piece, as many as it has, and every other id is one of its
        own. A learned word is found wherever transformers finds it: the longest one first, in
        either case. Raises SdjaxError for text that is not Unicode.
        """
        texts = [valid(text) for text in texts]
        encoded = self.clip(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [self._whole(ids) for ids in encoded]

    def _whole(self, ids: Sequence[int]) -> list[list[int]]:
        """Ids in pieces, each learned word's first followed by all of its others, once."""
        result, i, start = [], 0, len(self.vocabulary)
        place = {word: start + n for n, word in enumerate(self.learned)}
        while i < len(ids):
            word = [ids[i]]
            if ids[i] >= start:
                word += [place[other] for other in self._followers[self.learned[ids[i] - start]]]
            result.append(word)
            # A prompt may spell them out itself.
            i += len(word) if list(ids[i : i + len(word)]) == word else 1
        return result

    @classmethod
    @told_words
    def from_pretrained(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Reads a folder that transformers' `save_pretrained` wrote, of whichever version.

        `folder` may be the tokenizer's own or a pipeline's that has it as `tokenizer/`. It holds
        tokenizer.json, or vocab.json and merges.txt; the settings beside them count as they do in
        transformers. Raises SdjaxError where files are missing or damaged.
        """
        folder = Path(folder)
        folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
        if not (folder / "tokenizer.json").is_file():
            for name in ("vocab.json", "merges.txt"):
                if not (folder / name).is_file():
                    raise SdjaxError(
                        f"no tokenizer in {folder}: it has no {name}; expected tokenizer.json, or "
                        "vocab.json and merges.txt"
                    )
        try:
            clip = clip_class().from_pretrained(folder, local_files_only=True)
            model = json.loads(clip.backend_tokenizer.to_str())["model"]
        except Exception as error:  # whatever transformers or its library in Rust meets
            reason = str(error).strip().partition("\n")[0]
            raise SdjaxError(
                f"the tokenizer in {folder} is damaged: {type(error).__name__}: {reason}"
            ) from error
        vocabulary, length = model["vocab"], clip.model_max_length
        added = clip.added_tokens_decoder
        learned = [added[i].content for i in sorted(added) if i >= len(vocabulary)]
        unset = isinstance(length, int | float) and length >= UNSET
        try:
            return cls(
                vocabulary,
                model["merges"],
                LENGTH if unset else length,
                clip.pad_token or END,
                learned,
            )
        except Exception as error:  # the library in Rust has no narrower one
            raise SdjaxError(f"the tokenizer in {folder}: {error}") from error

    @told_words
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the files that transformers' `CLIPTokenizer.from_pretrained` reads."""
        check_local(folder)
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

        Learned words are found as `words` finds them. A prompt that does not fit is cut, and a
        warning names the words that were lost. Raises SdjaxError for text that is not Unicode.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        room = self.max_length - 2
        begin, end = self.vocabulary[BEGIN], self.vocabulary[END]
        ids = np.full((len(prompts), self.max_length), self.pad_id, np.int32)
        for row, words in zip(ids, self.words(prompts), strict=True):
            tokens = list(itertools.chain.from_iterable(words))
            if len(tokens) > room:
                lost = self.clip.decode(tokens[room:])
                warnings.warn(
                    f"only {room} tokens of a prompt are read; cut off: {lost!r}", stacklevel=2
                )
                tokens = tokens[:room]
            row[: len(tokens) + 2] = [begin, *tokens, end]
        return ids
