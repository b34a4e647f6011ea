"""What training wants of a source and of its loader."""

import numpy as np

from sdjax.errors import SdjaxError


def checked_labels(batch, classes):
    """Class labels of a batch or a set, int32 [N]; SdjaxError where they do not fit."""
    if "label" not in batch:
        raise SdjaxError("a model of classes needs data with labels, this source has none")
    labels = batch["label"].astype(np.int32)
    if labels.min() < 0 or labels.max() >= classes:
        raise SdjaxError(
            f"labels must be in 0 … {classes - 1}, found {labels.min()} … {labels.max()}: "
            "set unet.num_class_embeds to their number, one more with class_dropout"
        )
    return labels


class First:
    """The first items of a source."""

    def __init__(self, source, count):
        self._source, self._count = source, min(count, len(source))

    @property
    def sizes(self):
        """Items of each shard; None where there are none."""
        sizes = self._source.sizes
        if sizes is None:
            return None
        ends = np.minimum(np.cumsum(sizes), self._count)
        return np.diff(ends, prepend=0).tolist()

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._source[index]


class NumberBatches:
    """A loader's batches without what is no number, such as captions."""

    def __init__(self, batches, classes):
        self._batches, self._classes = batches, classes
        self.get_state, self.set_state = batches.get_state, batches.set_state
        self.rows = getattr(batches, "rows", None)
        self.batch_size = getattr(batches, "batch_size", None)

    def __next__(self):
        batch = {k: v for k, v in next(self._batches).items()
                 if v.dtype.kind in "iufb" and k not in ("context", "pooled")}
        batch = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in batch.items()}
        return batch | {"label": checked_labels(batch, self._classes)} if self._classes else batch
