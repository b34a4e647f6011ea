"""Batches whose captions become ids on the way, varied each time they are drawn."""

import numpy as np

from sdjax.text.chunks import literal_chunks
from sdjax.training.objectives.latent_loss import IDS


def encoded(tokenizers, texts, chunks=1) -> dict:
    """{"ids": int32 [N, L]} of captions, and "ids_2" where there are two tokenizers; [N, chunks, L]
    of several chunks.
    """
    def ids(tokenizer, texts):
        return tokenizer.encode(texts) if chunks == 1 else literal_chunks(texts, tokenizer, chunks)

    return {
        IDS[name]: np.concatenate([
            ids(tokenizer, texts[i:i + 1024]) for i in range(0, len(texts), 1024)
        ])
        for name, tokenizer in tokenizers.items()
    }


class VariedTexts:
    """Batches with ids in place of "caption" [b], varied by what their position gives.

    batches: as `ArrayBatches`. config: a `CaptionConfig`.
    """

    def __init__(self, batches, tokenizers, config, seed, chunks=1):
        self._batches, self._tokenizers, self._chunks = batches, tokenizers, chunks
        self._config, self._seed = config, seed
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._batches)
        random = np.random.default_rng((self._seed, self.get_state()["drawn"]))
        texts = [self._config.varied(str(text), random) for text in batch.pop("caption")]
        return batch | encoded(self._tokenizers, texts, self._chunks)


class Halves:
    """Batches made of a first part and a second, as DreamBooth wants pictures of its class."""

    def __init__(self, first, second):
        self._parts = first, second

    def __iter__(self):
        return self

    def __next__(self):
        first, second = (next(part) for part in self._parts)
        return {name: np.concatenate([first[name], second[name]]) for name in first}

    def get_state(self):
        """The positions of both, as JSON; "drawn" is the first one's."""
        first, second = (part.get_state() for part in self._parts)
        return {"drawn": first["drawn"], "second": second["drawn"]}

    def set_state(self, state):
        """Go to positions that get_state gave."""
        self._parts[0].set_state({"drawn": state["drawn"]})
        self._parts[1].set_state({"drawn": state["second"]})
