"""What a recipe is trained on: pictures, their tokenizer, their latents; made anew for what has
changed since it was made.
"""

from pathlib import Path

import numpy as np

from sdjax.data import open_source
from sdjax.errors import SdjaxError
from sdjax.mirror import place_of
from sdjax.stores import joined
from sdjax.text import Tokenizer, train_tokenizer
from sdjax.training.loop.settings import changes_since, keep, say, tell

from . import export
from .datasets import captions, encode_all, read_all, read_items
from .known_data import content_of
from .latent_cache import cached_latents, made_of, made_of_params
from .pictures import by_size
from .recipe import Recipe

TOKENIZER_CAPTIONS = 20_000  # captions that a vocabulary is learned from, at most


class Material:
    """The data of a recipe. What is made of it is kept in `workdir`, but for a source that cannot
    tell what it holds.
    """

    def __init__(self, recipe: Recipe, workdir: Path):
        self.recipe, self.workdir = recipe, workdir
        self.source = open_source(recipe.data, joined(place_of(workdir), "shards"))
        self.count = min(recipe.examples or len(self.source), len(self.source))
        self.content = content_of(self.source, workdir, self.count, recipe.in_memory)
        self._pictures = None

    def known_captions(self) -> list[str]:
        """The captions, as far as they are known without reading pictures."""
        items = None if self.content is None else self.content.items
        return [] if items is None else [caption for _, caption in items[: self.count]]

    def all_pictures(self):
        """All usable pictures, as `read_all` gives them, read once."""
        if self._pictures is None:
            self._pictures = read_all(self.source, self.count)
        return self._pictures

    def pictures(self, indices):
        """The usable ones of these pictures, from memory where they are there; None for none."""
        if self._pictures is None:
            return read_items(self.source, indices)
        rows = np.isin(self._pictures["index"], indices)
        return {name: array[rows] for name, array in self._pictures.items()} if any(rows) else None

    def tokenizer(self, begun: bool) -> Tokenizer:
        """The recipe's tokenizer: of `pretrained`, or learned from the captions.

        It is learned anew from other captions, but not where a network has `begun` with it, whose
        embeddings are those of its words.
        """
        if self.recipe.pretrained is not None:
            return Tokenizer.from_pretrained(self.recipe.pretrained)
        folder, config = self.workdir / "tokenizer", self.recipe.diffusion
        count = min(self.count, TOKENIZER_CAPTIONS)
        length = config.text_encoder.max_position_embeddings
        made_by = {"diffusion": {
            "vocab_size": config.vocab_size, "text_encoder": {"max_position_embeddings": length},
        }}
        if self.content is not None:
            made_by["captions"] = self.content.captions_digest(count)
        changed = changes_since(folder, made_by)
        if folder.exists() and (begun or not changed):
            tell(folder, changed)
            return Tokenizer.from_pretrained(folder)
        if changed:
            say(f"{folder} is learned anew:", *changed)
        say(f"learning a tokenizer from {count} captions")
        with export.replacing(folder) as part:
            train_tokenizer(captions(self.source, count), part, config.vocab_size, length)
            keep(part, made_by)
        return Tokenizer.from_pretrained(folder)

    def latents(self, given: Path | None, vae, params, flip=False) -> list[dict]:
        """For each size {"mean", "std", "caption", "index"} of all usable pictures; the latents are
        kept. With buckets there is "time_ids", and with flip "flipped_mean" and "flipped_std",
        those of the pictures mirrored.

        given: the folder of the autoencoder `vae` with its `params`; None where only these tell.
        """
        def compute(indices):
            sets = []
            for pictures in self._by_size(indices):
                found = {n: a for n, a in pictures.items() if n not in ("image", "label")}
                found["mean"], found["std"] = encode_all(vae, params, pictures["image"])
                if flip:
                    other = encode_all(vae, params, pictures["image"][:, :, ::-1])
                    found["flipped_mean"], found["flipped_std"] = other
                sets.append(found)
            return sets

        if self.content is None:
            sets = compute(range(self.count))
        else:
            options = {"image_size": self.recipe.data.image_size}
            if self.source.buckets is not None:
                options["buckets"] = repr(self.source.buckets)
            if flip:
                options["flip"] = True
            if given is None:
                wanted = made_of_params(options, params)
            else:
                wanted = made_of(options, sorted(given.rglob("*.safetensors")))
            path, keys = self.workdir / "latents.npz", self.content.keys(self.count)
            sets = cached_latents(path, wanted, keys, compute)
        return self._captioned(sets)

    def _by_size(self, indices):
        if self.source.buckets is not None:
            return by_size(self.source, indices)
        pictures = self.pictures(indices)
        return [] if pictures is None else [pictures]

    def _captioned(self, sets):
        """Sets of items, with the captions that these have now, without those that lack one."""
        found = []
        for arrays in sets:
            index, texts = arrays["index"], arrays["caption"].tolist()
            if self.content is not None and self.content.items is not None:
                texts = [self.content.items[i][1] for i in index]
            usable = np.array([self.source.has_caption(*item) for item in zip(index, texts)])
            arrays["caption"] = np.array(texts)
            if usable.any():
                found.append({name: array[usable] for name, array in arrays.items()})
        if not found:
            raise SdjaxError("the data has no usable picture")
        return found
