"""Vocabularies of CLIP's format: the published one, and small ones learned from captions.

Byte-pair encoding is Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2. Equal counts
are settled by the pair's spelling, so the same captions always give the same vocabulary.
"""

import functools
import gzip
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.text.tokenizer import BEGIN, END, Tokenizer

END_OF_WORD = "</w>"
PUBLISHED_MERGES = Path(__file__).parent.parent / "assets" / "clip" / "merges.txt.gz"
# Every byte alone and at the end of a word, then the two special tokens.
SMALLEST_VOCABULARY = 2 * 256 + 2


def byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes in a CLIP vocabulary, in its order.

    Printable Latin-1 bytes stand for themselves; the others are moved up from U+0100 on (GPT-2,
    Radford et al. 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = 256 - len(printable)
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(moved))]


def clip_vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Token to id: bytes, bytes that end a word, merges in order, begin and end tokens."""
    symbols = byte_symbols()
    ends = [symbol + END_OF_WORD for symbol in symbols]
    tokens = [*symbols, *ends, *map("".join, merges), BEGIN, END]
    return {token: i for i, token in enumerate(tokens)}


@functools.cache
def clip_tokenizer(pad_token: str = END) -> Tokenizer:
    """CLIP's own tokenizer of 77 tokens; SD2 and SDXL's second encoder pad with "!"."""
    with gzip.open(PUBLISHED_MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    return Tokenizer(clip_vocabulary(merges), merges, pad_token=pad_token)


def train_tokenizer(
    captions: Iterable[str],
    folder: str | os.PathLike | None = None,
    vocab_size: int = 2048,
    max_length: int = 24,
) -> Tokenizer:
    """Learns a CLIP-format byte-pair vocabulary of at most `vocab_size` tokens from captions.

    max_length: ids a prompt, begin and end tokens included. `folder`, where given, receives the
    files that transformers' `CLIPTokenizer` reads too.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise SdjaxError(f"vocab_size must be at least {SMALLEST_VOCABULARY}, got {vocab_size}")
    # An untrained tokenizer splits the text exactly as the trained one will.
    untrained = Tokenizer(clip_vocabulary([]), [])
    split = untrained.clip.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    counts = Counter()
    for caption in captions:
        counts.update(word for word, _ in split(untrained.normalized(caption)))
    merges = learn_merges(counts, vocab_size - SMALLEST_VOCABULARY)
    tokenizer = Tokenizer(clip_vocabulary(merges), merges, max_length)
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def learn_merges(counts: dict[str, int], limit: int) -> list[tuple[str, str]]:
    """At most `limit` merges: each time the commonest adjacent pair, until none occurs twice."""
    words = [([*word[:-1], word[-1] + END_OF_WORD], n) for word, n in sorted(counts.items())]
    pairs, places = Counter(), defaultdict(set)
    for i, (symbols, n) in enumerate(words):
        for pair in itertools.pairwise(symbols):
            pairs[pair] += n
            places[pair].add(i)
    merges, tokens = [], set()
    while len(merges) < limit and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        joined = "".join(best)
        if joined in tokens:  # another pair spells it already, and a token has one place only
            del pairs[best]
            continue
        tokens.add(joined)
        merges.append(best)
        for i in places.pop(best):
            symbols, n = words[i]
            for pair in itertools.pairwise(symbols):
                pairs[pair] -= n
            symbols[:] = _joined(symbols, best)
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
                places[pair].add(i)
        pairs = +pairs
    return merges


def _joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols of a word with every occurrence of a pair made one symbol."""
    result, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            result.append("".join(pair))
            i += 2
        else:
            result.append(symbols[i])
            i += 1
    return result
