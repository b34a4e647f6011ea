"""The posteriors of all pictures, kept in a file, and made anew for what has changed."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from sdjax import __version__


def made_of(image_size, weights) -> str:
    """What latents depend on beside their pictures: the size, and the autoencoder's files."""
    return json.dumps({
        "version": __version__,
        "image_size": image_size,
        "autoencoder": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in weights],
    })


def made_of_params(image_size, params) -> str:
    """The same of an autoencoder's parameters in memory."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params).items()):
        digest.update(".".join(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return json.dumps({
        "version": __version__, "image_size": image_size, "parameters": digest.hexdigest(),
    })


def cached_latents(path, made_of: str, keys, compute):
    """{"index" int [n], "mean", "std" float32 [n, h, w, C], "caption" str [n]} of the usable items
    of a source, in order, kept in the file `path`; None where none is usable.

    keys: one an item; items of one key, not "", have the same latents. made_of: what they depend
      on otherwise; a file made of something else is not used.
    compute: indices -> that dict for the usable ones of these items, or None where none is; it is
      asked for those that the file lacks.
    """
    saved = _read(path, made_of)
    row_of = {key: row for row, key in enumerate(saved["key"].tolist())} if saved else {}
    row_of.pop("", None)
    lacking = [index for index, key in enumerate(keys) if key not in row_of]
    parts = []
    if len(lacking) < len(keys):
        there = np.array([index for index, key in enumerate(keys) if key in row_of])
        rows = np.array([row_of[keys[index]] for index in there])
        parts.append({name: saved[name][rows] for name in ("mean", "std", "caption")}
                     | {"index": there})
    if lacking and (made := compute(lacking)):
        parts.append(made)
    if not parts:
        return None
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(arrays["index"])
    arrays = {name: array[order] for name, array in arrays.items()}
    key = np.array(keys)[arrays["index"]]
    if saved is None or not np.array_equal(key, saved["key"]):
        _write(path, made_of=made_of, key=key, **{n: a for n, a in arrays.items() if n != "index"})
    return arrays


def _read(path, wanted):
    if not path.exists():
        return None
    with np.load(path) as saved:
        if str(saved["made_of"]) != wanted:
            return None
        return {name: saved[name] for name in ("key", "mean", "std", "caption")}


def _write(path, **arrays):
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(unfinished, path)
