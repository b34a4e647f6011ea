"""The posteriors of all pictures, kept in a file, and made anew for what has changed."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from sdjax import __version__


def made_of(options: dict, weights) -> str:
    """What latents depend on beside their pictures: options such as the size, and the autoencoder's
    files.
    """
    digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in weights]
    return json.dumps({"version": __version__, **options, "autoencoder": digests})


def made_of_params(options: dict, params) -> str:
    """The same of a network's parameters in memory."""
    return json.dumps({"version": __version__, **options, "parameters": digest_of(params)})


def digest_of(params) -> str:
    """Of a tree of arrays by its names, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params).items()):
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{'.'.join(path)} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def cached_latents(path, made_of: str, keys, compute) -> list[dict]:
    """For each size of latents {"index" int [n], "mean", "std" float32 [n, h, w, C], "caption" str
    [n], …} of the usable items of a source, in order, kept in the file `path`; sizes in order.

    keys: one an item; items of one key, not "", have the same latents. made_of: what they depend
      on otherwise; a file made of something else is not used.
    compute: indices -> such a list for the usable ones of these items; it is asked for those that
      the file lacks.
    """
    saved = _read(path, made_of)
    place_of = {
        key: (number, row) for number, arrays in enumerate(saved)
        for row, key in enumerate(arrays["key"].tolist()) if key
    }
    parts = []
    for number, arrays in enumerate(saved):
        there = [i for i, key in enumerate(keys) if place_of.get(key, (None,))[0] == number]
        if there:
            rows = np.array([place_of[keys[index]][1] for index in there])
            parts.append({name: array[rows] for name, array in arrays.items() if name != "key"}
                         | {"index": np.array(there)})
    if lacking := [index for index, key in enumerate(keys) if key not in place_of]:
        parts += compute(lacking)
    groups = {}
    for part in parts:
        groups.setdefault(part["mean"].shape[1:], []).append(part)
    sets = [_joined(parts) for _, parts in sorted(groups.items())]
    key_of = [np.array(keys)[arrays["index"]] for arrays in sets]
    known = [arrays["key"] for arrays in saved]
    if sets and not (len(known) == len(sets) and all(map(np.array_equal, key_of, known))):
        _write(path, made_of, [
            {name: a for name, a in arrays.items() if name != "index"} | {"key": key}
            for arrays, key in zip(sets, key_of, strict=True)
        ])
    return sets


def _joined(parts):
    """Parts of one size in the order of their indices."""
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(arrays["index"])
    return {name: array[order] for name, array in arrays.items()}


def _read(path, wanted):
    if not path.exists():
        return []
    with np.load(path) as saved:
        if str(saved["made_of"]) != wanted:
            return []
        sets = {}
        for name in saved.files:
            number, _, field = name.partition("/")
            if field:
                sets.setdefault(int(number), {})[field] = saved[name]
        return [sets[number] for number in sorted(sets)]


def _write(path, made_of, sets):
    arrays = {f"{number}/{name}": a for number, own in enumerate(sets) for name, a in own.items()}
    write_arrays(path, made_of, arrays)


def write_arrays(path, made_of: str, arrays: dict) -> None:
    """Keeps arrays with what they are made of in the file `path`, which appears when it is whole.
    """
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, made_of=made_of, **arrays)
    os.replace(unfinished, path)
