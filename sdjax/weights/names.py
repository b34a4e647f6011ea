"""PyTorch state-dict keys and layouts ↔ Flax parameter trees, by rule.

A numeric component of a key joins the one before it, so `down_blocks.0.resnets.1.conv1.weight`
is `params["down_blocks.0"]["resnets.1"]["conv1"]["kernel"]`. `weight` is `embedding` in a module
whose name ends in "embedding" or "embeddings", `scale` where it has one axis, and `kernel` elsewhere: OIHW there
and HWIO here, [out, in] there and [in, out] here.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError
from sdjax.models.quantized import Quantized
from sdjax.weights.arrays import laid_out
from sdjax.weights.quantized.files import described
from sdjax.weights.quantized.rounding import check_kind, is_chosen, quantized
from sdjax.weights.tensors import LazyTensor, State, dtype_of, lazy

# Buffers that some versions save and that hold nothing learned.
IGNORED_SUFFIXES = ("position_ids", "embeddings.position_ids")


def tree_path(key: str, ndim: int) -> tuple[str, ...]:
    """The path in the parameter tree of a state-dict key whose tensor has `ndim` axes."""
    path: list[str] = []
    for part in key.split("."):
        if part.isdecimal() and path:
            path[-1] += f".{part}"
        else:
            path.append(part)
    if path[-1] == "weight":
        if ndim == 1:
            path[-1] = "scale"
        elif ndim == 2 and len(path) > 1 and path[-2].endswith(("embedding", "embeddings")):
            path[-1] = "embedding"
        else:
            path[-1] = "kernel"
    return tuple(path)


def state_key(path: tuple[str, ...]) -> str:
    """The state-dict key of a path in the parameter tree."""
    leaf = "weight" if path[-1] in ("kernel", "scale", "embedding") else path[-1]
    return ".".join((*path[:-1], leaf))


def to_jax_layout(tensor: LazyTensor) -> LazyTensor:
    """A kernel from PyTorch's [out, in, …] to […, in, out]."""
    shape = (*tensor.shape[2:], tensor.shape[1], tensor.shape[0])
    if tensor.packed is not None:
        return LazyTensor(shape, tensor.dtype, tensor.packed, tensor.packed)
    axes = (*range(2, len(shape)), 1, 0)
    return tensor.map(shape, lambda array: array.transpose(axes))


def to_torch_layout(tensor: LazyTensor) -> LazyTensor:
    """A kernel from […, in, out] to PyTorch's [out, in, …]."""
    shape = (tensor.shape[-1], tensor.shape[-2], *tensor.shape[:-2])
    axes = (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
    return tensor.map(shape, lambda array: array.transpose(axes))


def lazy_params(state: Mapping[str, LazyTensor]) -> dict[tuple[str, ...], LazyTensor]:
    """The flat parameter tree of a state, nothing read."""
    flat = {}
    for key, tensor in state.items():
        if key.endswith(IGNORED_SUFFIXES):
            continue
        path = tree_path(key, len(tensor.shape))
        if path[-1] == "kernel":
            tensor = to_jax_layout(tensor)
        elif tensor.packed is not None:
            tensor = LazyTensor(tensor.shape, tensor.dtype, tensor.packed, tensor.packed)
        flat[path] = tensor
    return flat


def params_from_state(
    state: Mapping[str, LazyTensor], dtype=None, expected=None, quantize: str | None = None
) -> dict:
    """Reads a state into a parameter tree of JAX arrays, a few tensors at a time.

    state: PyTorch keys and layouts. dtype: float32, float16 or bfloat16, or None for the file's.
    expected: a tree of arrays or `jax.ShapeDtypeStruct` (from `jax.eval_shape`) that names and
    shapes must match. quantize: None, or the kind of `sdjax.quantize` in which large weights are
    held; those that the state has in few bits stay so, of its own kind where none is asked for.
    Raises SdjaxError for a missing, unexpected, misshapen or non-finite tensor.
    """
    if quantize is not None:
        check_kind(quantize)
    dtype = None if dtype is None else dtype_of(dtype)
    flat = lazy_params(state)
    if expected is not None:
        check_shapes(flat, flatten_dict(expected))

    def load(path):
        tensor, name = flat[path], state_key(path)
        value = tensor.load()
        if tensor.packed is not None and quantize in (None, value.kind):
            return jax.device_put(value)
        if quantize is not None and is_chosen(path, tensor.shape, quantize):
            wide = laid_out(np.asarray(value), np.dtype(np.float32), name)
            return jax.device_put(quantized(wide, quantize, path[-1] == "embedding"))
        array = laid_out(np.asarray(value), dtype, name)
        # The array is aligned and nobody else's: on a CPU it becomes JAX's own without a copy.
        return jax.device_put(array, may_alias=True)

    # Two are busy on most machines' memory, and each holds a mapped tensor.
    with ThreadPoolExecutor(2) as pool:
        return unflatten_dict(dict(zip(flat, pool.map(load, flat), strict=True)))


def check_shapes(found: Mapping, expected: Mapping) -> None:
    """Raises SdjaxError unless two flat trees have the same paths and shapes."""
    missing = [state_key(path) for path in expected if path not in found]
    extra = [state_key(path) for path in found if path not in expected]
    wrong = [
        f"{state_key(path)} {tuple(found[path].shape)} instead of {tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", extra), ("misshapen", wrong))
        if names
    ]
    if complaints:
        raise SdjaxError(
            f"the weights are not those of this architecture ({len(expected)} tensors): "
            + "; ".join(complaints)
        )


def state_from_params(params: Mapping) -> State:
    """The PyTorch state of a parameter tree (arrays or shapes), nothing copied yet."""
    state = {}
    for path, leaf in flatten_dict(params).items():
        if isinstance(leaf, Quantized):
            state[state_key(path)] = described(leaf)
            continue
        tensor = lazy(leaf)
        state[state_key(path)] = to_torch_layout(tensor) if path[-1] == "kernel" else tensor
    return state
