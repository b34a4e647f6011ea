"""Few bits in safetensors as they are here: what lies in a file for one weight.

A weight `X.weight` lies as `X.weight.codes`, `.scales` and `.units`, the arrays of
`sdjax.models.quantized.Quantized`; the file's metadata says of what kind and shape each is.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models.quantized import KINDS, LEVELS, Quantized
from sdjax.weights.tensors import LazyTensor, State, lazy

METADATA = "sdjax.quantized"
_FIELDS = ("codes", "scales", "units")
_AS_IT_IS = "the file is damaged, or of a later version"


def described(leaf: Quantized) -> LazyTensor:
    """A value of few bits as a tensor in PyTorch's layout, which knows what it is made of."""
    axes = (0, 1) if leaf.rows else (leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))
    shape = tuple(leaf.shape[axis] for axis in axes)
    return LazyTensor(
        shape, leaf.dtype, lambda: np.asarray(leaf).transpose(axes), packed=lambda: leaf
    )


def spread(state: Mapping[str, LazyTensor]) -> tuple[State, dict[str, str], set[str]]:
    """(tensors of a file, its metadata, keys of the tensors that keep their dtype)."""
    tensors, notes = {}, {}
    for key, tensor in state.items():
        if tensor.packed is None:
            tensors[key] = tensor
            continue
        leaf = tensor.packed()
        notes[key] = {"kind": leaf.kind, "shape": leaf.shape, "rows": leaf.rows}
        tensors |= {
            f"{key}.{name}": lazy(getattr(leaf, name))
            for name in _FIELDS
            if getattr(leaf, name) is not None
        }
    metadata = {METADATA: json.dumps(notes)} if notes else {}
    return tensors, metadata, set(tensors) - set(state)


def gathered(path: Path, state: State, metadata: Mapping[str, str]) -> State:
    """A file's tensors with those of each weight of few bits put together again.

    Raises SdjaxError where the file contradicts itself.
    """
    if METADATA not in metadata:
        return state
    left = dict(state)
    try:
        notes = dict(json.loads(metadata[METADATA]))
        for key, note in notes.items():
            kind, shape, rows = note["kind"], tuple(map(int, note["shape"])), bool(note["rows"])
            fields = [left.pop(f"{key}.{name}", None) for name in _FIELDS]
            _check(kind, shape, rows, fields)
            left[key] = _described(fields, kind, shape, rows)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, SdjaxError) else f"{METADATA} is not understood"
        raise SdjaxError(f"{path}: {what}: {_AS_IT_IS}") from error
    return left


def _described(fields, kind, shape, rows) -> LazyTensor:
    def read():
        arrays = (None if field is None else np.array(field.load()) for field in fields)
        return Quantized(*arrays, kind, shape, rows)

    axes = (0, 1) if rows else (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
    torch_shape = tuple(shape[axis] for axis in axes)
    return LazyTensor(
        torch_shape, Quantized.dtype, lambda: np.asarray(read()).transpose(axes), packed=read
    )


def _check(kind, shape, rows, fields) -> None:
    if kind not in KINDS or len(shape) < 2:
        raise SdjaxError(f"weights of the kind {kind!r} and shape {shape} are not known")
    size = int(np.prod(shape))
    outputs = shape[0] if rows else shape[-1]
    inputs = size // outputs
    if kind in LEVELS:
        blocks = fields[1].shape[0]
        expected = [(inputs // 2, outputs), (blocks, outputs), (outputs,)]
        dtypes = ["uint8", "uint8", "bfloat16"]
        fits = blocks and inputs % (2 * blocks) == 0
    else:
        expected, fits = [(inputs, outputs), (outputs,), None], True
        dtypes = ["int8" if kind == "int8" else "float8_e4m3fn", "float32", None]
    found = [None if field is None else (tuple(field.shape), field.dtype.name) for field in fields]
    wanted = [None if one is None else (one, name)
              for one, name in zip(expected, dtypes, strict=True)]
    if not fits or found != wanted:
        raise SdjaxError(f"a weight of {kind} has {found}, expected {wanted}")
