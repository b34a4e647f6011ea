"""Parameters in few bits: which weights become `sdjax.models.quantized.Quantized`, and how."""

from collections.abc import Mapping

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError
from sdjax.models.quantized import KINDS, LEVELS, Quantized
from sdjax.weights.arrays import all_finite

BLOCK = 64  # inputs of an output that share a scale, at most
LEAST = 16  # a kernel whose inputs make no blocks of so many stays wide
# What stays wide: the first and last layer and what tells the time, few weights that all else
# follows, positions, and of a model of sound the vocoder.
_WIDE = (
    "conv_in", "conv_out", "time_embedding", "time_embed", "add_embedding", "class_embedding",
    "quant_conv", "post_quant_conv", "position_embedding", "vocoder",
)  # fmt: skip
# Shares of a block's largest weight that int4 tries to span; the one of the least error is taken.
_SPANS = np.float32([8 / 7, 1.06, 1.0, 0.94, 0.88, 0.8])
_CHUNK = 2**19  # weights that are quantised together: what is made of them stays in the cache
_CODES = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
_LARGEST = {"int8": 127.0, "fp8": float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)}


def check_kind(kind: str) -> None:
    """SdjaxError for a kind that is none."""
    if kind not in KINDS:
        raise SdjaxError(f"weights of few bits are one of {', '.join(KINDS)}, got {kind!r}")


def quantize(params: Mapping, kind: str) -> dict:
    """Parameters with their large weights in few bits, for the same networks; those that stay wide
    are shared.

    params: of a network, or of a pipeline's parts by name. kind: "int8" and "fp8" with a scale for
    each output, "int4" and "nf4" with one for each block of up to 64 inputs. Norms, biases, the
    first and last layers, embeddings of time and positions stay as they are, and so do kernels too
    small for blocks. A network computes with it in its own dtype, each kernel made wide where it is
    used. Raises SdjaxError for another kind, and weights that are not finite.
    """
    check_kind(kind)
    flat = flatten_dict(params)
    for path, leaf in flat.items():
        if is_chosen(path, leaf.shape, kind) and getattr(leaf, "kind", None) != kind:
            made = quantized(np.asarray(leaf), kind, path[-1] == "embedding")
            on_device = isinstance(jax.tree.leaves(leaf)[0], jax.Array)
            flat[path] = jax.device_put(made) if on_device else made
    return unflatten_dict(flat)


def quantized_shapes(shapes: Mapping, kind: str) -> dict:
    """What `quantize` makes of parameters of these shapes, as `jax.ShapeDtypeStruct`."""
    flat = flatten_dict(shapes)
    for path, leaf in flat.items():
        if is_chosen(path, leaf.shape, kind):
            rows = path[-1] == "embedding"
            outputs = leaf.shape[0] if rows else leaf.shape[-1]
            inputs, units = int(np.prod(leaf.shape)) // outputs, None
            if kind in LEVELS:
                codes = (inputs // 2, outputs), np.uint8
                scales = (inputs // block_of(inputs), outputs), np.uint8
                units = jax.ShapeDtypeStruct((outputs,), ml_dtypes.bfloat16)
            else:
                codes, scales = ((inputs, outputs), _CODES[kind]), ((outputs,), np.float32)
            arrays = (jax.ShapeDtypeStruct(*one) for one in (codes, scales))
            flat[path] = Quantized(*arrays, units, kind, tuple(leaf.shape), rows)
    return unflatten_dict(flat)


def is_chosen(path: tuple[str, ...], shape: tuple[int, ...], kind: str) -> bool:
    """Whether the parameter of a path and shape is one that becomes few bits."""
    if path[-1] not in ("kernel", "embedding") or len(shape) < 2 or set(path) & set(_WIDE):
        return False
    inputs = shape[-1] if path[-1] == "embedding" else int(np.prod(shape[:-1]))
    return kind not in LEVELS or block_of(inputs) >= LEAST


def block_of(inputs: int) -> int:
    """The largest even number of inputs, up to 64, that they can be cut into; 0 where none."""
    sizes = range(min(inputs, BLOCK) // 2 * 2, 0, -2)
    return next((size for size in sizes if inputs % size == 0), 0)


def quantized(array: np.ndarray, kind: str, rows: bool = False) -> Quantized:
    """A kernel [..., in, out], or with `rows` a table [out, K], in few bits, on the host."""
    if not all_finite(np.asarray(array)):
        raise SdjaxError("a weight is not finite: it cannot be written in few bits")
    matrix = array.T if rows else array.reshape(-1, array.shape[-1])
    matrix = np.asarray(matrix, np.float32)
    made = _blocks(matrix, kind) if kind in LEVELS else _by_output(matrix, kind)
    return Quantized(*made, kind, tuple(array.shape), rows)


def narrow_bytes(tree) -> int:
    """Bytes of the arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _by_output(matrix, kind):
    scales = np.abs(matrix).max(axis=0) / np.float32(_LARGEST[kind])
    values = matrix / np.where(scales == 0, np.float32(1), scales)
    if kind == "int8":
        return np.rint(values).astype(np.int8), scales, None
    return values.astype(ml_dtypes.float8_e4m3fn), scales, None


def _blocks(matrix, kind):
    inputs, outputs = matrix.shape
    size = block_of(inputs)
    blocks = matrix.reshape(-1, size, outputs)
    most = np.abs(blocks).max(axis=1)
    whole = np.float32(8 if kind == "int4" else 1)  # what the largest weight of a block stands at
    spans = _SPANS if kind == "int4" else np.ones(1, np.float32)
    unit = spans.max() * most.max(axis=0) / (254 * whole)
    units = unit.astype(ml_dtypes.bfloat16)
    unit = units.astype(np.float32)
    scales = np.empty(most.shape, np.uint8)
    codes = np.empty((inputs // 2, outputs), np.uint8)
    step = max(1, _CHUNK // (size * outputs))
    for start in range(0, len(blocks), step):
        own = blocks[start : start + step]
        best = None
        for span in spans:
            given = _scales(span * most[start : start + step] / whole, unit)
            factors = given * unit
            divided = own / np.where(factors == 0, np.float32(1), factors)[:, None]
            chosen = _nearest(divided, kind)
            error = ((LEVELS[kind][chosen] * factors[:, None] - own) ** 2).sum(axis=1)
            if best is None:
                best = [error, given, chosen]
                continue
            better = error < best[0]
            best = [
                np.where(better, error, best[0]), np.where(better, given, best[1]),
                np.where(better[:, None], chosen, best[2]),
            ]
        _, given, chosen = best
        scales[start : start + step] = given
        pairs = chosen.reshape(-1, 2, outputs)
        codes[start * size // 2 : (start + len(own)) * size // 2] = pairs[:, 0] << 4 | pairs[:, 1]
    return codes, scales, units


def _scales(wanted, unit):
    """Whole numbers of units, as float32: at least 1 where there is anything."""
    number = np.rint(wanted / np.where(unit == 0, np.float32(1), unit))
    return np.clip(number, wanted > 0, 255)


def _nearest(values, kind):
    """The codes of the nearest levels, uint8."""
    if kind == "int4":
        return (np.clip(np.rint(values), -8, 7) + 8).astype(np.uint8)
    middles = (LEVELS[kind][1:] + LEVELS[kind][:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)
