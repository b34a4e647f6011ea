"""Weights of 8-bit floating point with a scale beside them, as ComfyUI has them in single files.

`X.weight` is float8_e4m3fn or float8_e5m2, and `X.scale_weight`, or in later files
`X.weight_scale`, what it is multiplied with: one number, or one for each output.
"""

import json
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights.tensors import LazyTensor, State, lazy

_SCALES = ("scale_weight", "weight_scale")
# Of the layer's inputs, for products in 8 bits: another program's business.
_IGNORED = ("scale_input", "input_scale")
_MARKER, _NOTE = "scaled_fp8", "comfy_quant"
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_FLOAT8 = ml_dtypes.float8_e4m3fn
_LARGEST = np.float32(ml_dtypes.finfo(_FLOAT8).max)


def wide(state: Mapping[str, LazyTensor]) -> State:
    """The state with such weights multiplied out, float32, and without what belongs to them.

    Raises SdjaxError for a format that is not known, and a scale without its weight.
    """
    left = {}
    for key, tensor in state.items():
        last = key.rpartition(".")[2]
        if last == _NOTE:
            _check_note(key, tensor)
        elif last not in (*_IGNORED, _MARKER, *_SCALES):
            left[key] = tensor
    for key, scale in state.items():
        module, _, last = key.rpartition(".")
        if last in _SCALES:
            left[f"{module}.weight"] = _product(f"{module}.weight", left, key, scale)
    return left


def _check_note(key: str, tensor: LazyTensor) -> None:
    try:
        said = json.loads(tensor.load().astype(np.uint8).tobytes())["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise SdjaxError(f"{key} is not understood: {error!r}") from error
    if said not in _FORMATS:
        raise SdjaxError(
            f"{key} says {said!r}: of ComfyUI's formats {' and '.join(_FORMATS)} are read; take the "
            "model in one of these, or wide"
        )


def _product(name: str, left: State, key: str, scale: LazyTensor) -> LazyTensor:
    weight = left.get(name)
    if weight is None or weight.dtype.name not in _FORMATS:
        found = "missing" if weight is None else f"of {weight.dtype}"
        raise SdjaxError(f"{key} scales {name}, which is {found}: expected {' or '.join(_FORMATS)}")
    count = int(np.prod(scale.shape))
    if count not in (1, weight.shape[0]) or max(scale.shape, default=1) != count:
        raise SdjaxError(
            f"{key} has the shape {scale.shape}, expected one number, or one for each of the "
            f"{weight.shape[0]} outputs of {name}"
        )

    def load() -> np.ndarray:
        factors = scale.load().astype(np.float32).reshape(-1, *(1,) * (len(weight.shape) - 1))
        return weight.load().astype(np.float32) * factors

    return LazyTensor(weight.shape, np.dtype(np.float32), load)


def narrowed(state: Mapping[str, LazyTensor], prefix: str) -> State:
    """A single file's state with the linear layers of the network of a prefix scaled, one number
    each: what ComfyUI runs. Convolutions have no scales there and stay.
    """
    made: State = {}
    for key, tensor in state.items():
        linear = key.startswith(prefix) and key.endswith(".weight") and len(tensor.shape) == 2
        if not linear or "embed" in key or "label_emb" in key:
            made[key] = tensor
            continue
        weight = tensor.load().astype(np.float32)
        scale = np.abs(weight).max() / _LARGEST or np.float32(1)
        made[key] = lazy((weight / scale).astype(_FLOAT8))
        made[key.removesuffix("weight") + _SCALES[0]] = lazy(np.float32(scale))
    made[f"{prefix}{_MARKER}"] = lazy(np.zeros(2, _FLOAT8))  # of two: products stay wide
    return made
