"""The order in which training on top of a model draws from its sets, and their captions as ids."""

import numpy as np

from sdjax.data.folder import ImageFolder
from sdjax.errors import SdjaxError
from sdjax.training.loop.bucket_feed import BucketBatches
from sdjax.training.loop.feed import ArrayBatches

from .texts import Halves, VariedTexts, encoded


def batches(run, tokenizers, sets, repeats, others=None):
    """Batches of a `TuningRun`; with `others`, a set of the class of DreamBooth, half of each is of
    that.

    repeats: as `repeated` gives them.
    """
    if others is None:
        return _stream(run, tokenizers, sets, run.batch_size, run.seed, repeats)
    if run.batch_size % 2:
        raise SdjaxError(f"batch_size must be even with a prior, got {run.batch_size}")
    for arrays in sets:
        arrays["weight"] = np.ones(len(arrays["caption"]), np.float32)
    others["weight"] = np.full(len(others["caption"]), run.prior.weight, np.float32)
    half = run.batch_size // 2
    return Halves(
        _stream(run, tokenizers, sets, half, run.seed, repeats),
        _stream(run, tokenizers, [others], half, run.seed + 1, None),
    )


def repeated(source, sets):
    """For each of the sets what an epoch draws, where folders say how often; else None."""
    repeats = np.array(source.repeats) if isinstance(source, ImageFolder) else np.ones(1, int)
    if (repeats == 1).all():
        return None
    return [
        np.repeat(np.arange(len(arrays["index"])), repeats[arrays["index"].astype(int)])
        for arrays in sets
    ]


def numbers(run, tokenizers, arrays) -> dict:
    """A set with ids in place of captions, as the losses take it; of several captions the first."""
    own = {name: a for name, a in arrays.items() if name not in ("index", "caption")}
    if "context" in arrays:
        return own
    texts = [text.split("\n")[0] for text in arrays["caption"].tolist()]
    return own | encoded(tokenizers, texts, run.text_chunks)


def varies(run, sets) -> bool:
    """Whether a picture's caption is another each time it is drawn."""
    return run.captions.varies or any("\n" in text for s in sets for text in s["caption"].tolist())


def _stream(run, tokenizers, sets, size, seed, repeats):
    changing = varies(run, sets)
    if changing:
        sets = [{name: a for name, a in arrays.items() if name != "index"} for arrays in sets]
    else:
        sets = [numbers(run, tokenizers, arrays) for arrays in sets]
    if len(sets) == 1:
        stream = ArrayBatches(sets[0], size, seed, items=None if repeats is None else repeats[0])
    else:
        group = run.accumulation * run.steps_per_call
        stream = BucketBatches(sets, size, seed, group=group, items=repeats)
    if not changing:
        return stream
    return VariedTexts(stream, tokenizers, run.captions, seed, run.text_chunks)
