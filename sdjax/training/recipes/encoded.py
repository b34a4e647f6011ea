"""Latents and embedded captions of a whole set, computed once, in tar files that are read as it
goes.
"""

import io
import json
import tarfile

import jax
import numpy as np

from sdjax import __version__
from sdjax.data import open_source
from sdjax.data.source import in_shards
from sdjax.errors import SdjaxError
from sdjax.parallel import leader, meet
from sdjax.stores import Store, address, joined
from sdjax.training.loop.settings import as_json, changes, say

from .latent_cache import digest_of

NAME = "encoded.json"
SAMPLES = 1024  # of a file, where the pictures do not lie in shards themselves
BATCH = 32  # pictures encoded at once


def made_of(recipe, networks, params) -> dict:
    """What latents and embedded captions depend on beside the pictures and captions."""
    run = recipe.diffusion
    found = {
        "version": __version__, "image_size": recipe.data.image_size,
        "autoencoder": digest_of(params["vae"]),
    }
    if getattr(run, "cache_texts", False):
        found["texts"] = {
            "clip_skip": run.clip_skip, "chunks": run.text_chunks, "prompt": run.captions.prompt,
            "encoders": {name: digest_of(params[name]) for name in networks.encoders},
        }
    return as_json(found)


def check_made_of(folder: str, wanted: dict) -> None:
    """SdjaxError where a folder does not hold what is encoded so."""
    folder = folder.partition("{")[0].rpartition("/")[0] if folder.endswith(".tar") else folder
    store, path = Store(folder), joined(folder, NAME)
    if not store.exists(path):
        raise SdjaxError(f"{address(folder)} has no {NAME}: expected a folder that `data encode` "
                         "made")
    found = json.loads(store.read(path))["made_of"]
    if "texts" in wanted and "texts" not in found:
        raise SdjaxError(f"{address(folder)} has no embedded captions: encode with "
                         "--diffusion.cache-texts True, or train without it")
    if differing := changes({**found, "version": None}, {**wanted, "version": None}):
        what = differing[0].removeprefix("changed since: ")
        raise SdjaxError(f"{address(folder)} was encoded otherwise than this training wants: {what}"
                         ": encode anew into another folder")


def encode(recipe, networks, params, out: str, dtype: str = "float32") -> int:
    """Writes what is encoded of a recipe's data into the folder or address `out`; how many samples
    this process has written.

    networks, params: the model's, of an `AutoencoderKL` and, for the captions, of `networks`. Each
    process of a job makes its share of the files, and leaves those that are there already.
    dtype: of the arrays in the files.
    """
    from .datasets import encoder
    from .text_cache import Contexts
    from .texts import encoded

    run, data = recipe.diffusion, recipe.data
    if data.buckets or data.flip or data.source.startswith("encoded:"):
        raise SdjaxError("data encode takes square pictures: set data.buckets and data.flip to "
                         "False, and data.source to pictures")
    source = open_source(data, joined(out, "index") if in_shards(data) else None)
    settings = {"made_of": made_of(recipe, networks, params), "dtype": dtype,
                "data": {"source": data.source, "split": data.split, "examples": recipe.examples,
                         "filter": repr(data.filter)}}
    _check_settings(out, as_json(settings))
    posterior, store = encoder(networks.vae), Store(out)
    contexts = Contexts(run, networks, params, None) if "texts" in settings["made_of"] else None
    parts = ranges(source.sizes, min(recipe.examples or len(source), len(source)))
    own = list(enumerate(parts))[jax.process_index()::jax.process_count()]
    names = {path.rpartition("/")[2] for path in store.find(out)}
    lacking = [(number, part) for number, part in own if _file(number) not in names]
    say(f"encoding {len(parts)} files; {len(own) - len(lacking)} of process 0's "
        f"{len(own)} are there already")
    written = 0
    for number, part in lacking:
        items = []
        for start in range(part.start, part.stop, BATCH):
            indices = range(start, min(start + BATCH, part.stop))
            items += _encoded(source, indices, posterior, params, contexts, run, dtype, encoded)
        store.write(joined(out, _file(number)), _tar(items))
        written += len(items)
        say(f"encoded {_file(number)}: {len(items)} samples")
    meet()
    say(f"finished: {address(out)}; {len(source.broken)} broken samples were left out")
    return written


def ranges(sizes, count: int) -> list[range]:
    """The items of each file: those of a shard, or so many of a source without."""
    if sizes is None:
        return [range(start, min(start + SAMPLES, count)) for start in range(0, count, SAMPLES)]
    ends = np.minimum(np.cumsum(sizes), count)
    return [range(int(end - size), int(end)) for end, size in
            zip(ends, np.diff(ends, prepend=0), strict=True) if size]


def _file(number):
    return f"{number:06}.tar"


def _check_settings(out, settings):
    store, path = Store(out), joined(out, NAME)
    if leader() and not store.exists(path):
        store.write(path, (json.dumps(settings, indent=2) + "\n").encode())
    meet()
    before = json.loads(store.read(path))
    if differing := changes(before, settings):
        raise SdjaxError(f"{address(out)} holds what was encoded otherwise: "
                         f"{differing[0].removeprefix('changed since: ')}: take another folder")


def _encoded(source, indices, posterior, params, contexts, run, dtype, encoded):
    """(name, {ending: bytes}) of the whole ones of these items."""
    found = [(i, item) for i in indices if (item := source[i]) is not None]
    if not found:
        return []
    rows = np.minimum(np.arange(BATCH), len(found) - 1)  # one shape, one program
    images = np.stack([item["image"] for _, item in found])
    mean, std = posterior(params["vae"], images[rows])
    arrays = {"mean": mean, "std": std}
    if contexts is not None:
        texts = [run.captions.of(found[row][1]["caption"]) for row in rows]
        arrays |= contexts.embed(encoded(contexts.tokenizers, texts, run.text_chunks))
    return [
        (f"{index:012}", {
            **{f"{name}.npy": _npy(array[row].astype(dtype)) for name, array in arrays.items()},
            "txt": item["caption"].encode(),
        })
        for row, (index, item) in enumerate(found)
    ]


def _npy(array):
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array))
    return file.getvalue()


def _tar(items):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, parts in items:
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()
