"""Shapes of parameters kept between runs: tracing a large network takes as long as reading it."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

from sdjax.caches import cache_folder

_NAME = "shapes"


def kept(trace: Callable[..., dict]) -> Callable[..., dict]:
    """`trace`, of configurations to a tree of `jax.ShapeDtypeStruct`, asked once for each.

    Kept are shapes for the life of the process, and, where programs are too, in the user's cache
    by what they follow from: configurations, the code of the networks, and the versions of JAX and
    flax. Leave the trees as they are.
    """

    @functools.cache
    @functools.wraps(trace)
    def shapes(*configs):
        folder = cache_folder(_NAME)
        if folder is None:
            return trace(*configs)
        place = folder / f"{_key(trace, configs)}.json"
        found = _read(place)
        if found is None:
            found = trace(*configs)
            _write(place, found)
        return found

    return shapes


def _key(trace, configs) -> str:
    given = (f"{trace.__module__}.{trace.__qualname__}", repr(configs), _code())
    return hashlib.sha256("\n".join(given).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """A digest of what the shapes follow from beside their configurations."""
    digest, package = hashlib.sha256(), Path(__file__).parent.parent
    for room in ("models", "weights"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    versions = [metadata.version(name) for name in ("jax", "flax")]
    return f"{digest.hexdigest()} {versions} {jax.config.jax_enable_x64}"


def _read(place: Path):
    """The tree of a file; None where there is none, or none that can be read."""
    try:
        rows = json.loads(place.read_text(encoding="utf-8"))
        tree: dict = {}
        for path, shape, dtype in rows:
            *above, name = path
            inner = functools.reduce(lambda own, one: own.setdefault(one, {}), above, tree)
            inner[name] = jax.ShapeDtypeStruct(tuple(map(int, shape)), jnp.dtype(dtype))
        return tree
    except (OSError, ValueError, TypeError):
        return None


def _write(place: Path, tree) -> None:
    """Writes the tree; where that cannot be done, it is traced again the next time."""
    rows = [
        [[key.key for key in path], leaf.shape, leaf.dtype.name]
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(rows), encoding="utf-8")
        part.replace(place)
