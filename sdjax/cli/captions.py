"""`sdjax captions`: what a model was trained to draw."""

from pathlib import Path

import tyro

from sdjax.errors import SdjaxError
from sdjax.folders import check_local

from .common import MODEL_WORDS, known_words, parsed


def captions(words: tyro.conf.Positional[tuple[str, ...]] = (), model: Path | None = None) -> None:
    """List the captions that a model was trained on, one a line.

    sdjax captions

    sdjax captions heart --model runs/emoji/model

    Args:
        words: Only captions that hold all of these.
        model: A folder that `train` wrote; the emoji model that comes with the project where not
            given.
    """
    import sdjax
    from sdjax.pipeline.model.captions import CAPTIONS, read_captions

    folder = sdjax.EMOJI if model is None else model
    check_local(folder)
    if not folder.is_dir():
        raise SdjaxError(f"no such model folder: {folder}")
    known = read_captions(folder)
    if not known:
        raise SdjaxError(f"{folder} does not say what it was trained on: it has no {CAPTIONS}")
    found = [line for line in known if all(word.lower() in line.lower() for word in words)]
    if not found:
        raise SdjaxError(f"none of its {len(known)} captions holds {' and '.join(words)}")
    print("\n".join(found))


def run(arguments: list[str], program: str) -> int:
    """Reads the options, and lists."""
    parsed(captions, arguments, program, words=known_words(["model"], MODEL_WORDS))
    return 0
