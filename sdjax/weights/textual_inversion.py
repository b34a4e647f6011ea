"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): learned words as embedding vectors."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.models.quantized import is_narrow
from sdjax.weights.arrays import all_finite
from sdjax.weights.pickles import read_pickle
from sdjax.weights.tensors import LazyTensor, read_safetensors

_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
# Names under which files keep the vectors of a word whose name they do not say.
_NAMELESS = ("emb_params", "*")
BUNDLE = "bundle_emb."
"""Before the words that OneTrainer puts into an adapter's file: `bundle_emb.WORD.clip_l`."""


def bundled_words(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each word bundled with an adapter, the keys of its vectors by what they are of."""
    words: dict[str, dict[str, str]] = {}
    for key in keys:
        if key.startswith(BUNDLE):
            word, _, kind = key.removeprefix(BUNDLE).rpartition(".")
            words.setdefault(word, {})[kind] = key
    return words


def read_textual_inversion(
    path: str | os.PathLike, params: Mapping, parts: Sequence[str], token: str | None = None
) -> tuple[str, dict[str, np.ndarray]]:
    """(word, vectors float32[n, width] by text encoder part) of a file in any of four formats.

    params: of the pipeline, to find the encoder that the vectors fit. token: the word, instead of
    the file's own, or the one to read of several that an adapter's file holds. Raises SdjaxError
    where the file holds no vectors for this model.
    """
    check_local(path)
    path = Path(path)
    if not path.is_file():
        raise SdjaxError(f"no such file: {path}")
    pickled = path.suffix in (".bin", ".pt", ".pth")
    content = read_pickle(path) if pickled else read_safetensors(path)[0]
    name = content.get("name") if isinstance(content.get("name"), str) else path.stem
    if isinstance(content.get("string_to_param"), dict):
        content = content["string_to_param"]
    tensors = {key: value for key, value in content.items() if isinstance(value, LazyTensor)}
    if words := bundled_words(tensors):
        name = token if token in words or len(words) > 1 else next(iter(words))
        if name not in words:
            raise SdjaxError(
                f"{path} holds the words {', '.join(sorted(words))}: expected one of them as "
                f"token=, got {token!r}"
            )
        tensors = {kind: tensors[key] for kind, key in words[name].items()}
    if words or set(tensors) & set(_SDXL):
        if unknown := sorted(set(tensors) - set(_SDXL)):
            raise SdjaxError(
                f"{path}: the word {name!r} has vectors that are not read: {', '.join(unknown)}"
            )
        vectors = {_SDXL[key]: value for key, value in tensors.items()}
    elif len(tensors) == 1:
        ((key, value),) = tensors.items()
        name = name if key in _NAMELESS else key
        fitting = [part for part in parts if value.shape[-1:] == (_width(params, part),)]
        vectors = {fitting[0] if fitting else parts[0]: value}
    else:
        raise SdjaxError(
            f"{path} is not a textual inversion: expected one word's vectors, found "
            f"{len(tensors)} tensors"
        )
    for part, value in vectors.items():
        width = _width(params, part) if part in parts else None
        if len(value.shape) not in (1, 2) or value.shape[-1] != width or not value.shape[0]:
            raise SdjaxError(
                f"{path} is of another model: its vectors have shape {value.shape}, the model's "
                f"{part} takes [n, {width}]"
            )
    arrays = {
        part: np.atleast_2d(value.load().astype(np.float32)) for part, value in vectors.items()
    }
    if not all(map(all_finite, arrays.values())):
        raise SdjaxError(f"{path} holds vectors that are not finite: the file is damaged")
    return token or name, arrays


def _embedding_path(params: Mapping, part: str) -> tuple[str, ...]:
    start = ("text_model",) if "text_model" in params[part] else ()
    return (*start, "embeddings", "token_embedding", "embedding")


def token_embeddings(params: Mapping, part: str):
    """The table of a text encoder, [words, width]."""
    leaf = params[part]
    for name in _embedding_path(params, part):
        leaf = leaf[name]
    return leaf


def _width(params: Mapping, part: str) -> int:
    return token_embeddings(params, part).shape[-1]


def with_vectors(params: Mapping, part: str, vectors: np.ndarray) -> dict:
    """Parameters whose text encoder `part` knows more words: vectors [n, width] follow its own."""

    def extended(tree, path):
        if not path:
            known = tree.wide() if is_narrow(tree) else tree  # a learned word stays as it is
            return jnp.concatenate([known, jnp.asarray(vectors, known.dtype)])
        return {**tree, path[0]: extended(tree[path[0]], path[1:])}

    return {**params, part: extended(params[part], _embedding_path(params, part))}
