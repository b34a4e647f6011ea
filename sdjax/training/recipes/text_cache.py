"""What captions are embedded as, kept in a file, and made anew for what has changed."""

import hashlib
import json
from pathlib import Path

import numpy as np

from sdjax import __version__
from sdjax.errors import SdjaxError
from sdjax.parallel import map_over_devices
from sdjax.training.loop.settings import say
from sdjax.training.objectives.latent_loss import embedded

from .latent_cache import digest_of, write_arrays
from .texts import encoded

CHUNK = 32  # captions embedded at once


class Contexts:
    """Embeds captions by a model's text encoders, keeping them in the file `path`.

    run: a `TuningRun`. path: None to embed alone. params: the model's parameters by their parts.
    """

    def __init__(self, run, networks, params, path: Path | None):
        self._run, self._networks, self._path = run, networks, path
        self._params = {name: params[name] for name in networks.encoders}
        self._program = None
        self._made_of = json.dumps({
            "version": __version__, "clip_skip": run.clip_skip, "dtype": run.precision,
            "encoders": {name: digest_of(tree) for name, tree in self._params.items()},
        })
        self.tokenizers = networks.tokenizers
        self._known = self._read()

    def of(self, texts) -> dict:
        """{"context" float32 [N, K, D]} of N captions, and "pooled" [N, P] where the model has it.
        """
        if any("\n" in text for text in texts):
            raise SdjaxError("cache_texts keeps one caption a picture: set data.caption_lines or "
                             "cache_texts to False")
        ids = encoded(self._networks.tokenizers, list(texts), self._run.text_chunks)
        keys = [
            hashlib.blake2b(b"".join(ids[name][i].tobytes() for name in sorted(ids))).hexdigest()
            for i in range(len(texts))
        ]
        lacking = list({key: i for i, key in enumerate(keys) if key not in self._known}.values())
        if lacking:
            say(f"embedding {len(lacking)} captions")
            made = self.embed({name: array[lacking] for name, array in ids.items()})
            for row, i in enumerate(lacking):
                self._known[keys[i]] = {name: array[row] for name, array in made.items()}
            self._write()
        rows = [self._known[key] for key in keys]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def embed(self, ids) -> dict:
        """What `of` gives, of ids as `encoded` makes them; nothing is kept."""
        def embed(params, ids):
            found = embedded(self._networks.encoders, params, ids, self._run.clip_skip)
            return {name: x.astype("float32") for name, x in found._asdict().items()
                    if x is not None}

        if self._program is None:
            self._program = map_over_devices(embed, items=1)
        count, parts = len(next(iter(ids.values()))), []
        for start in range(0, count, CHUNK):
            rows = np.minimum(np.arange(start, start + min(CHUNK, count)), count - 1)
            parts.append(self._program(self._params, {name: array[rows] for name, array in ids.items()}))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    def _read(self):
        if self._path is None or not self._path.exists():
            return {}
        with np.load(self._path) as saved:
            if str(saved["made_of"]) != self._made_of:
                return {}
            names = [name for name in saved.files if name not in ("made_of", "key")]
            arrays = {name: saved[name] for name in names}
            return {key: {name: arrays[name][row] for name in names}
                    for row, key in enumerate(saved["key"].tolist())}

    def _write(self):
        rows = list(self._known.values())
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        write_arrays(self._path, self._made_of, {"key": np.array(list(self._known)), **arrays})


def empty_contexts(contexts: Contexts) -> dict:
    """The empty prompt's, as the frozen tree has them: "empty_context" and "empty_pooled"."""
    return {f"empty_{name}": array[0] for name, array in contexts.of([""]).items()}
