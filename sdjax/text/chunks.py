"""Prompts of any length to chunks of token ids, each token with its weight."""

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.text.grammar import Weighted, weighted
from sdjax.text.tokenizer import BEGIN, END, Tokenizer

Weighting = Literal["a1111", "comfy", "compel"]
BACKTRACK = 20  # how many tokens after the last comma move to the next chunk rather than be parted


class Chunks(NamedTuple):
    """Prompts for one text encoder, in chunks of the ids that it takes at once."""

    ids: np.ndarray | jax.Array
    """int32[N, chunks, L]: begin token, prompt, end token, padding."""
    weights: np.ndarray | jax.Array
    """float32[N, chunks, L], 1 where nothing else was said."""
    lowered: np.ndarray | jax.Array
    """int32[N, chunks, L]: k in the k-th piece of a weight below 1, else 0."""
    empty: np.ndarray | jax.Array
    """int32[N, L]: the empty prompt."""


class _Token(NamedTuple):
    id: int
    weight: float
    lowered: int


def check_weighting(weighting: str | None) -> None:
    """Raises SdjaxError for what is neither a way of weighting nor None."""
    if weighting is not None and weighting not in get_args(Weighting):
        raise SdjaxError(
            f"weighting must be {', '.join(get_args(Weighting))} or None for text taken "
            f"literally, got {weighting!r}"
        )


def chunked(
    texts: Sequence[Sequence[str]],
    tokenizers: Sequence[Tokenizer],
    weighting: Weighting | None = "a1111",
) -> tuple[Chunks, ...]:
    """Chunks of N texts for each text encoder, all of one shape.

    texts: for each encoder the N texts it reads, after `composed` and `scheduled`.
    weighting: whose numbers the brackets have, see `sdjax.text.grammar.weighted`. None takes the
        text literally and cuts it to one chunk, as diffusers does.

    Where one encoder needs more chunks for a text than another, the other gets empty ones, as in
    ComfyUI. Where one text has more chunks than another, the chunks of both are repeated until
    their numbers agree: attention over keys that all come equally often is attention over them
    once, so a text's picture does not depend on the others in its batch.
    """
    check_weighting(weighting)
    if weighting is None:
        return tuple(
            _plain(tokenizer.encode(own)[:, None], tokenizer)
            for own, tokenizer in zip(texts, tokenizers, strict=True)
        )
    rows = [
        _parted(own, tokenizer, weighting == "comfy")
        for own, tokenizer in zip(texts, tokenizers, strict=True)
    ]
    counts = [max(map(len, same)) for same in zip(*rows, strict=True)]
    total = math.lcm(*counts)
    result = []
    for own, tokenizer in zip(rows, tokenizers, strict=True):
        chunks = _plain(np.empty((len(own), total, tokenizer.max_length), np.int32), tokenizer)
        for n, (one, count) in enumerate(zip(own, counts, strict=True)):
            full = itertools.chain(one, itertools.repeat([], count - len(one)))
            for i, tokens in enumerate(full):
                # Each again after `count` others.
                _fill(chunks, np.s_[n, i::count], tokens, tokenizer)
        result.append(chunks)
    return tuple(result)


def literal_chunks(texts: Sequence[str], tokenizer: Tokenizer, count: int) -> np.ndarray:
    """int32[N, count, L]: texts as they are, without a grammar, in so many chunks.

    They are parted where `chunked` parts them. Chunks that a text lacks are empty. A text that does
    not fit is cut, and a warning names the words that were lost.
    """
    ids = np.empty((len(texts), count, tokenizer.max_length), np.int32)
    for row, text in zip(ids, texts, strict=True):
        chunks = [[t.id for t in chunk] for chunk in _chunks([[Weighted(text, 1.0)]], tokenizer)]
        if lost := [token for chunk in chunks[count:] for token in chunk]:
            warnings.warn(
                f"only {count} chunks of a text are read; cut off: "
                f"{tokenizer.clip.decode(lost)!r}", stacklevel=2,
            )
        for i in range(count):
            row[i] = _row(chunks[i] if i < len(chunks) else [], tokenizer)
    return ids


def _parted(
    texts: Sequence[str], tokenizer: Tokenizer, absolute: bool
) -> list[list[list[_Token]]]:
    """For each text its chunks; each different text is read once."""
    known = {text: _chunks(weighted(text, absolute), tokenizer) for text in dict.fromkeys(texts)}
    return [known[text] for text in texts]


def _plain(ids: np.ndarray, tokenizer: Tokenizer) -> Chunks:
    """Chunks [N, chunks, L] without weights."""
    empty = np.repeat(_row([], tokenizer)[None], len(ids), 0)
    return Chunks(ids, np.ones(ids.shape, np.float32), np.zeros(ids.shape, np.int32), empty)


def _row(tokens: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    """int32[L]: begin token, tokens, end token, padding."""
    begin, end = tokenizer.vocabulary[BEGIN], tokenizer.vocabulary[END]
    row = np.full(tokenizer.max_length, tokenizer.pad_id, np.int32)
    row[: len(tokens) + 2] = [begin, *tokens, end]
    return row


def _fill(chunks: Chunks, place, tokens: Sequence[_Token], tokenizer: Tokenizer) -> None:
    """Writes a chunk's tokens to a place of the arrays."""
    chunks.ids[place] = _row([token.id for token in tokens], tokenizer)
    inside = (*place, np.s_[1 : len(tokens) + 1])
    chunks.weights[inside] = [token.weight for token in tokens]
    chunks.lowered[inside] = [token.lowered for token in tokens]


def _chunks(groups: Sequence[Sequence[Weighted]], tokenizer: Tokenizer) -> list[list[_Token]]:
    """The tokens of a text in chunks, parted by the web UI's rules.

    BREAK ends a chunk. What follows the last comma, up to `BACKTRACK` tokens, goes to the next one
    rather than be parted. A learned word is never parted.
    """
    room, comma = tokenizer.max_length - 2, tokenizer.vocabulary.get(",</w>")
    words = iter(tokenizer.words([piece.text for group in groups for piece in group] or [""]))
    done, chunk, after_comma, lowered = [], [], None, 0
    for number, group in enumerate(groups):
        if number:
            done.append(chunk)
            chunk, after_comma = [], None
        for piece in group:
            lowered += piece.weight < 1
            for word in next(words):
                if len(word) > room:
                    raise SdjaxError(
                        f"a learned word of {len(word)} vectors does not fit into the {room} "
                        "tokens that the text encoder takes"
                    )
                if word[0] == comma:
                    after_comma = len(chunk) + 1
                elif len(chunk) == room and after_comma and room + 1 - after_comma <= BACKTRACK:
                    done.append(chunk[:after_comma])
                    chunk, after_comma = chunk[after_comma:], None
                if len(chunk) + len(word) > room:
                    done.append(chunk)
                    chunk, after_comma = [], None
                mark = lowered if piece.weight < 1 else 0
                chunk += [_Token(token, piece.weight, mark) for token in word]
    return [*done, chunk] if chunk or not done else done
