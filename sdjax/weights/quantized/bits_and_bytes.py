"""Weights as bitsandbytes keeps them in a state dict: 4 bits (nf4, fp4) and 8 bits, read; nf4
written (Dettmers et al. 2023, arXiv 2305.14314, and 2022, arXiv 2208.07339).

A weight `X.weight` of 4 bits is its flattened numbers in blocks, two codes a byte, the first in the
high half; `.absmax` is what the codes of a block are multiplied with, itself in 8 bits where
`.nested_absmax` is there. Of 8 bits it is a matrix, and `X.SCB` the largest of each row.
"""

import json
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models.quantized import LEVELS
from sdjax.weights.tensors import LazyTensor, State, lazy

_STATE = re.compile(r"(.*)\.quant_state\.bitsandbytes__(nf4|fp4)$")
_DTYPES = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
_BLOCK = 64
# 1 / 127 as the library multiplies with it.
_STEP = np.float32(7.874015718698502e-3)
# Linear layers that stay wide where this writes: those that tell the time.
SKIPPED = ("time_embedding", "add_embedding")


def wide(state: Mapping[str, LazyTensor]) -> State:
    """The state with such weights as wide ones: of 4 bits in the dtype that they were made of, of 8
    in float32, each the numbers that the library gives.

    Raises SdjaxError for what is not whole or not known.
    """
    left = dict(state)
    for key in state:
        if match := _STATE.match(key):
            left[match[1]] = _four_bits(left, key, match[1])
        elif key.endswith(".SCB"):
            module = key.removesuffix(".SCB")
            left[f"{module}.weight"] = _eight_bits(left, module)
    return left


def _four_bits(left: State, key: str, weight: str) -> LazyTensor:
    try:
        said = json.loads(left.pop(key).load().tobytes())
        shape, block = tuple(map(int, said["shape"])), int(said["blocksize"])
        dtype = _DTYPES[said["dtype"]]
        nested = said.get("nested_blocksize")
        offset = np.float32(said["nested_offset"]) if nested else None
    except (KeyError, TypeError, ValueError) as error:
        raise SdjaxError(f"{key} is not understood: {error!r}") from error
    names = ("absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if nested else ()))
    try:
        codes, absmax, levels, *more = (
            left.pop(name) for name in (weight, *(f"{weight}.{name}" for name in names))
        )
    except KeyError as error:
        raise SdjaxError(f"{weight} of 4 bits is not whole: {error} is missing") from error
    size = int(np.prod(shape))
    counts = [int(np.prod(one.shape)) for one in (codes, absmax, levels, *more)]
    blocks = -(-size // block)
    expected = [-(-size // 2), blocks, 16, *([-(-blocks // nested), 256] if nested else [])]
    if counts != expected or codes.dtype != np.uint8:
        raise SdjaxError(
            f"{weight} of 4 bits and shape {shape} has {counts} numbers of {codes.dtype}, expected "
            f"{expected} of uint8"
        )

    def load() -> np.ndarray:
        scales = absmax.load()
        if nested:
            of_scales, table = (one.load().astype(np.float32).ravel() for one in more)
            scales = table[scales.ravel()] * np.repeat(of_scales, nested)[:blocks] + offset
        bits = codes.load().ravel()
        both = np.stack([bits >> 4, bits & 15], axis=1).ravel()[:size]
        factors = np.repeat(scales.astype(np.float32).ravel(), block)[:size]
        values = levels.load().astype(np.float32).ravel()[both] * factors
        return values.reshape(shape).astype(dtype)

    return LazyTensor(shape, dtype, load)


def _eight_bits(left: State, module: str) -> LazyTensor:
    scale, codes = left.pop(f"{module}.SCB"), left.get(f"{module}.weight")
    layout = left.pop(f"{module}.weight_format", None)
    if layout is not None and int(layout.load()) != 0:
        raise SdjaxError(
            f"{module}.weight of 8 bits is laid out for one kind of GPU (weight_format "
            f"{int(layout.load())}): expected rows, 0"
        )
    if codes is None or codes.dtype != np.int8 or scale.shape != codes.shape[:1]:
        raise SdjaxError(f"{module}.weight is not int8 with a number of {module}.SCB for each row")

    def load() -> np.ndarray:
        rows = scale.load().astype(np.float32).reshape(-1, *(1,) * (len(codes.shape) - 1))
        return codes.load() * rows * _STEP

    return LazyTensor(codes.shape, np.dtype(np.float32), load)


def narrowed(state: Mapping[str, LazyTensor], dtype: str = "float16") -> State:
    """A U-Net's state with its linear layers as nf4 in blocks of 64, not nested, all else in the
    dtype that the file is written in. dtype: what the library makes of the codes.
    """
    made: State = {}
    for key, tensor in state.items():
        linear = len(tensor.shape) == 2 and key.endswith(".weight") and "embedding" not in key
        if not linear or key.startswith(SKIPPED):
            made[key] = tensor
            continue
        codes, absmax = _encoded(tensor.load().astype(np.float32))
        said = {"quant_type": "nf4", "blocksize": _BLOCK, "dtype": dtype, "shape": tensor.shape}
        note = np.frombuffer(json.dumps(said).encode(), np.uint8)
        made |= {
            key: lazy(codes[:, None]), f"{key}.absmax": lazy(absmax),
            f"{key}.quant_map": lazy(LEVELS["nf4"]),
            f"{key}.quant_state.bitsandbytes__nf4": lazy(note),
        }  # fmt: skip
    return made


CONFIG = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False,
    "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": list(SKIPPED),
}  # fmt: skip
"""What stands as quantization_config in the config.json beside such weights."""


def _encoded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers = weight.ravel()
    size = numbers.size
    blocks = np.pad(numbers, (0, -size % _BLOCK)).reshape(-1, _BLOCK)
    absmax = np.abs(blocks).max(axis=1)
    scaled = blocks * (np.float32(1) / np.maximum(absmax, np.float32(1e-38)))[:, None]
    middles = (LEVELS["nf4"][1:] + LEVELS["nf4"][:-1]) / np.float32(2)
    codes = np.searchsorted(middles, np.clip(scaled, -1, 1).ravel()[: size + size % 2])
    pairs = codes.astype(np.uint8).reshape(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1], absmax
