"""Arrays of a file made into arrays for JAX: cast, laid out, and checked, in one pass."""

import numpy as np

from sdjax.errors import SdjaxError

ALIGNMENT = 64  # bytes; where an array starts at a multiple of it, XLA:CPU takes it as it is
# Of the last axis, copied at once: the transposed reads of a block stay in the cache.
BLOCK = 32
CHECKED = 2**18  # numbers looked at together: what the check itself makes stays small
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00}


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is a floating-point one, ml_dtypes' included."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def laid_out(array: np.ndarray, dtype: np.dtype | None, name: str) -> np.ndarray:
    """A contiguous, aligned copy of an array that may be a view of a mapped file.

    dtype: of the copy where the array is of a floating-point dtype; None keeps its own. name: for
    errors. Raises SdjaxError where a value is not finite, or too large for the new dtype.
    """
    dtype = array.dtype if dtype is None or not is_float(array.dtype) else dtype
    copy = _aligned(array.shape, dtype)
    with np.errstate(over="ignore"):
        if array.flags.c_contiguous:
            np.copyto(copy, array, casting="unsafe")
        else:
            for start in range(0, array.shape[-1], BLOCK):
                block = array[..., start : start + BLOCK]
                # Cast in the order of the file, then transposed: each in the order it is fast in.
                block = block if block.dtype == dtype else block.astype(dtype, order="K")
                copy[..., start : start + BLOCK] = block
    if not all_finite(copy):
        refuse(array, dtype, name)
    return copy


def cast(array: np.ndarray, dtype: np.dtype | None, name: str) -> np.ndarray:
    """A floating-point array in `dtype`, or its own with None; others as they are.

    Raises SdjaxError where a value is not finite, or too large for the new dtype.
    """
    if not is_float(array.dtype):
        return array
    dtype = dtype or array.dtype
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    if not all_finite(result):
        refuse(array, dtype, name)
    return result


def refuse(array: np.ndarray, dtype: np.dtype, name: str) -> None:
    """Raises SdjaxError for an array that is not finite in `dtype`, or nowhere."""
    if dtype == np.float16 and all_finite(array):
        largest = np.abs(array.astype(np.float32)).max()
        raise SdjaxError(
            f"{name} holds values up to {largest:.4g}, above float16's 65504: use bfloat16 or "
            "float32"
        )
    raise SdjaxError(f"{name} holds values that are not finite: the checkpoint is damaged")


def all_finite(array: np.ndarray) -> bool:
    """Whether no value of an array is infinite or not a number."""
    numbers = array.ravel("K")
    return all(
        _block_finite(numbers[start : start + CHECKED])
        for start in range(0, numbers.size, CHECKED)
    )


def _block_finite(numbers: np.ndarray) -> bool:
    exponent = _EXPONENTS.get(numbers.dtype.name)
    if exponent is None:
        return bool(np.isfinite(numbers).all())
    bits = numbers.view(np.uint16)  # many times faster than the half-precision function
    return not ((bits & exponent) == exponent).any()


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array whose first byte is at a multiple of `ALIGNMENT`."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
