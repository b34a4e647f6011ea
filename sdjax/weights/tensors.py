"""Tensors that are described now and read later, and the safetensors format.

A *state* is a dict from a PyTorch state-dict key to a `LazyTensor`. Renaming, splitting and
transposing act on the description, so a checkpoint is converted one tensor at a time and memory
holds little more than the result.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.weights.arrays import cast, is_float
from sdjax.weights.foreign import first_bytes

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_SHORT = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
_HEADER_LIMIT = 100_000_000  # bytes; the reference implementation's limit


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor's shape and dtype, and a function that reads it as a NumPy array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    packed: Callable[[], Any] | None = None
    """What reads it in few bits, a `sdjax.models.quantized.Quantized` of JAX's layout; None of a
    tensor that is not so. What `map` gives is not."""

    def map(self, shape: tuple[int, ...], function: Callable) -> "LazyTensor":
        """The same tensor through `function`, which gives an array of `shape`."""
        return LazyTensor(tuple(shape), self.dtype, lambda: function(self.load()))


State = dict[str, LazyTensor]


def lazy(array) -> LazyTensor:
    """Describes an array (NumPy, JAX, or a `jax.ShapeDtypeStruct`, which cannot be loaded)."""
    return LazyTensor(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def dtype_of(name) -> np.dtype:
    """float32, float16 or bfloat16 by its name ("fp16", "bfloat16", …) or as a dtype."""
    text = name if isinstance(name, str) else np.dtype(name).name
    if text not in _SHORT:
        raise SdjaxError(f"dtype must be float32, float16 or bfloat16, got {name!r}")
    return np.dtype(ml_dtypes.bfloat16 if _SHORT[text] == "bfloat16" else _SHORT[text])


def mapped(path: Path, dtype: np.dtype, start: int, count: int) -> np.ndarray:
    """`count` numbers of a file from byte `start` on, mapped: read when they are looked at.

    What is made of them is then the only copy. Map one tensor at a time and let go of it: mapped
    pages count as this process's memory. Raises ValueError where the file is too short.
    """
    if not count:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", start, count))


def read_safetensors(path: str | os.PathLike) -> tuple[State, dict[str, str]]:
    """Describes a .safetensors file: (state, metadata). Data are read tensor by tensor, later.

    Raises SdjaxError for a file that is not safetensors, is truncated, or contradicts itself.
    """
    path = Path(path)
    first_bytes(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise SdjaxError(
                    f"{path} is not a safetensors file or is truncated: its first 8 bytes "
                    f"announce a header of {length} bytes, the file has {size} bytes"
                )
            raw = file.read(length)
    except OSError as error:
        raise SdjaxError(f"cannot read {path}: {error.strerror}") from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SdjaxError(f"{path} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise SdjaxError(f"{path} is not a safetensors file: its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise SdjaxError(f"{path}: __metadata__ must be a JSON object")
    state = {key: _describe(path, key, entry, 8 + length, size) for key, entry in header.items()}
    return state, {str(key): str(value) for key, value in metadata.items()}


def _describe(path: Path, key: str, entry, start: int, size: int) -> LazyTensor:
    """One header entry as a tensor, with everything about it checked."""
    entry = entry if isinstance(entry, dict) else {}
    code, shape, offsets = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise SdjaxError(f"{path}: the header entry of {key!r} is not a shape and two offsets")
    if not isinstance(code, str) or code not in DTYPES:
        raise SdjaxError(f"{path}: {key!r} has dtype {code!r}; supported are {', '.join(DTYPES)}")
    dtype, count = DTYPES[code], 1
    for length in shape:
        count *= length
    begin, end = offsets
    if end - begin != count * dtype.itemsize:
        raise SdjaxError(
            f"{path}: {key!r} of shape {shape} in {code} takes {count * dtype.itemsize} bytes, "
            f"but its offsets span {end - begin}"
        )
    if start + end > size:
        raise SdjaxError(
            f"{path} is truncated: {key!r} ends at byte {start + end}, the file has {size}; "
            "download it again"
        )

    def load() -> np.ndarray:
        try:
            return mapped(path, dtype, start + begin, count).reshape(shape)
        except OSError as error:
            raise SdjaxError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise SdjaxError(f"{path} changed while it was read: {key!r} is cut short") from error

    return LazyTensor(tuple(shape), dtype, load)


def _naturals(value) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def write_safetensors(
    path: str | os.PathLike,
    state: Mapping[str, LazyTensor],
    dtype=None,
    metadata: Mapping[str, str] | None = None,
    exact: Container[str] = (),
) -> None:
    """Writes a state, one tensor in memory at a time, floating-point tensors in `dtype`.

    exact: keys of tensors that keep their own. The file appears under its name only when it is
    whole. `metadata` gets "format": "pt", which PyTorch readers ask for. Raises SdjaxError
    where the folder cannot be written.
    """
    check_local(path)
    path = Path(path)
    dtype = None if dtype is None else dtype_of(dtype)
    kinds = {
        key: tensor.dtype
        if dtype is None or key in exact or not is_float(tensor.dtype)
        else dtype
        for key, tensor in state.items()
    }
    # Wide items first, so that every tensor starts at a multiple of its item size.
    keys = sorted(state, key=lambda key: (-kinds[key].itemsize, key))
    header, offset = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    for key in keys:
        shape = state[key].shape
        end = offset + int(np.prod(shape, dtype=np.int64)) * kinds[key].itemsize
        header[key] = {
            "dtype": _CODES[kinds[key]],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key in keys:
                array = cast(state[key].load(), kinds[key], key)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        partial.replace(path)
    except OSError as error:
        raise SdjaxError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
