"""Training on top of a model by pictures, or what `data encode` made of them, read as it goes."""

import dataclasses

import numpy as np

from sdjax.data import loader
from sdjax.data.source import in_shards
from sdjax.errors import SdjaxError

from .encoded import check_made_of, made_of
from .loaded import First
from .sets import picture_ids
from .texts import encoded


def check_streamed(recipe) -> None:
    """SdjaxError for what a `TuningRun` cannot have where its pictures do not lie in memory."""
    run, data = recipe.diffusion, recipe.data
    cached = data.source.startswith("encoded:")
    refused = {
        "diffusion.prior": run.prior is not None, "diffusion.masks": run.masks,
        "diffusion.beside": run.beside, "data.buckets": data.buckets,
        "data.validation (data.validation_source does)": data.validation,
        "data.caption_lines": data.caption_lines,
        "a data.validation_source of shards": data.validation_source
        and in_shards(dataclasses.replace(data, source=data.validation_source)),
        "data.flip": cached and data.flip,
        "an adaptation that needs pictures": cached and run.adaptation.needs,
        f"an adaptation that needs {' and '.join(run.adaptation.needs)}":
        set(run.adaptation.needs) - {"image"},
    }
    for name, asked in refused.items():
        if asked:
            raise SdjaxError(f"{name} does not go with data.source {data.source}, which is read as "
                             "it goes")


def check_texts(recipe) -> None:
    """SdjaxError where captions were to be kept embedded that are read as they come."""
    data = recipe.data
    if in_shards(data) and recipe.diffusion.cache_texts and not data.source.startswith("encoded:"):
        raise SdjaxError(f"diffusion.cache_texts does not go with data.source {data.source}, which "
                         "is read as it goes: `data encode` it first")


def first_items(tuning) -> dict:
    """The first whole items for the sample sheet: {"caption" str [n], "index"}, and "image"."""
    source, run, found = tuning.material.source, tuning.run, []
    for index in range(min(tuning.material.count, 64)):
        if (item := source[index]) is not None:
            found.append(item | {"index": index})
        if len(found) == max(1, run.sheet.images):
            break
    if not found:
        raise SdjaxError(f"{tuning.recipe.data.source} has no usable picture among its first")
    names = [name for name in ("image", "index") if name in found[0]]
    arrays = {name: np.stack([item[name] for item in found]) for name in names}
    return arrays | {"caption": np.array([run.captions.of(item["caption"]) for item in found])}


def batches(tuning) -> "Streamed":
    """Batches of a source of shards, as the losses take them."""
    recipe, run, source = tuning.recipe, tuning.run, tuning.material.source
    if recipe.data.source.startswith("encoded:"):
        folder = recipe.data.source.partition(":")[2]
        check_made_of(folder, made_of(recipe, tuning.networks, tuning.base))
    rows = recipe.placement.laid_out().rows(run.batch_size)
    data = dataclasses.replace(recipe.data, seed=run.seed)
    if recipe.examples:
        source = First(source, recipe.examples)
    return Streamed(loader(source, data, run.batch_size, rows=rows), tuning)


class Streamed:
    """A loader's batches with ids in place of captions, each varied by its place."""

    def __init__(self, batches, tuning):
        self._batches, self._run = batches, tuning.run
        self._model, self._size = tuning.model, tuning.size
        self._tokenizers = tuning.networks.tokenizers
        self.rows, self.batch_size = batches.rows, batches.batch_size
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self):
        return self

    def __next__(self):
        run, batch = self._run, next(self._batches)
        texts = batch.pop("caption").tolist()
        batch = {name: np.asarray(a, np.float32) for name, a in batch.items() if name != "label"}
        ids = picture_ids(self._model, run, (self._size,) * 2, len(texts))
        if ids is not None:
            batch["time_ids"] = ids
        if run.cache_texts:
            if "context" not in batch:
                raise SdjaxError("diffusion.cache_texts wants texts among what is encoded: encode "
                                 "with diffusion.cache_texts, or set it to False")
            return batch
        batch = {name: a for name, a in batch.items() if name not in ("context", "pooled")}
        drawn = self.get_state()["drawn"]
        texts = [
            run.captions.varied(run.captions.of(text), np.random.default_rng((run.seed, drawn, row)))
            for text, row in zip(texts, self.rows.tolist(), strict=True)
        ]
        return batch | encoded(self._tokenizers, texts, run.text_chunks)
