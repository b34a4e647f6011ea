"""States written in few bits: as they are here, and in the open formats of other programs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models.quantized import KINDS, Quantized
from sdjax.weights.checkpoint import Checkpoint, Part
from sdjax.weights.names import to_jax_layout, tree_path
from sdjax.weights.quantized import bits_and_bytes, gguf_files
from sdjax.weights.quantized.files import described
from sdjax.weights.quantized.rounding import is_chosen, quantized
from sdjax.weights.tensors import LazyTensor, State

BITS_AND_BYTES = "bnb-nf4"
FORMATS = (*KINDS, BITS_AND_BYTES, *gguf_files.WRITTEN)
"""What `sdjax convert --quantize` writes."""


def check_format(kind: str | None, out: Path) -> None:
    """SdjaxError where a file or folder of this name cannot hold such weights."""
    if kind is None:
        return
    if kind not in FORMATS:
        raise SdjaxError(f"quantize must be one of {', '.join(FORMATS)}, got {kind!r}")
    fits = {".gguf": gguf_files.WRITTEN, ".safetensors": ("fp8",)}
    known = fits.get(out.suffix, (*KINDS, BITS_AND_BYTES))
    if kind not in known:
        what = f"a {out.suffix} file" if out.suffix in fits else "a folder"
        raise SdjaxError(
            f"{what} holds weights of {', '.join(known)}, got {kind}: q8_0 and q4_0 go into .gguf, "
            "int8, int4, nf4 and bnb-nf4 into folders"
        )


def narrowed(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """A checkpoint whose states have few bits, to be written as a folder; of bitsandbytes' the U-Net.
    """
    parts = dict(checkpoint.parts)
    for name, part in parts.items():
        if kind != BITS_AND_BYTES:
            parts[name] = Part(part.config, _narrowed(part.state, kind))
        elif name == "unet":
            config = {**part.config, "quantization_config": bits_and_bytes.CONFIG}
            parts[name] = Part(config, bits_and_bytes.narrowed(part.state))
    return dataclasses.replace(checkpoint, parts=parts)


def widened(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without weights of few bits."""
    def wide(tensor: LazyTensor) -> LazyTensor:
        return tensor if tensor.packed is None else tensor.map(tensor.shape, lambda x: x)

    parts = {
        name: Part(part.config, {key: wide(tensor) for key, tensor in part.state.items()})
        for name, part in checkpoint.parts.items()
    }
    return dataclasses.replace(checkpoint, parts=parts)


def _narrowed(state: Mapping[str, LazyTensor], kind: str) -> State:
    made: State = {}
    for key, tensor in state.items():
        path = tree_path(key, len(tensor.shape))
        wide = to_jax_layout(tensor) if path[-1] == "kernel" else tensor
        made[key] = tensor
        if is_chosen(path, wide.shape, kind):
            made[key] = _packed(tensor, wide, kind, path[-1] == "embedding")
    return made


def _packed(tensor: LazyTensor, wide: LazyTensor, kind: str, rows: bool) -> LazyTensor:
    def made() -> Quantized:
        value = wide.load()
        if isinstance(value, Quantized) and value.kind == kind:
            return value
        return quantized(np.asarray(value).astype(np.float32), kind, rows)

    return LazyTensor(tensor.shape, tensor.dtype, lambda: described(made()).load(), packed=made)
