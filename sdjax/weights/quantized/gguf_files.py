"""GGUF files of Stable Diffusion, by the package `gguf` (the extra `gguf`).

Read are whole models as stable-diffusion.cpp writes them, under original names with the text encoders'
as it has them, and U-Nets alone as ComfyUI-GGUF does, whose convolutions are laid out anew with
their shapes under `comfy.gguf.orig_shape.`.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights.tensors import LazyTensor, State

READ = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K",
)  # fmt: skip
WRITTEN = ("q8_0", "q4_0")
_SHAPE = "comfy.gguf.orig_shape."
_FAMILIES = {"sd1": "sd1", "sdxl": "sdxl"}
# Stays wide, as in stable-diffusion.cpp.
_WIDE = ("time_embed.", "label_emb.", "embedding")
# What stable-diffusion.cpp calls the parts of an OpenCLIP whose keys it renames.
_OPEN_CLIP = (
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.text_projection", "text_projection"),
    (r"text_model\.encoder\.layers\.(\d+)\.self_attn\.in_proj\.",
     r"transformer.resblocks.\1.attn.in_proj_"),
    (r"text_model\.encoder\.layers\.(\d+)\.self_attn\.", r"transformer.resblocks.\1.attn."),
    (r"text_model\.encoder\.layers\.(\d+)\.layer_norm", r"transformer.resblocks.\1.ln_"),
    (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)  # fmt: skip


def _package():
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise SdjaxError(
            'GGUF files need the package gguf: pip install "sdjax[gguf]", or pip install gguf'
        ) from error


def read_gguf(path: Path) -> State:
    """Describes the tensors of a GGUF file, float32 once read, under names of a single file.

    Raises SdjaxError for a damaged file, a type of tensor that is not read, and without the package.
    """
    gguf = _package()
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, UnicodeDecodeError) as error:
        raise SdjaxError(f"{path} is a GGUF file that cannot be read: {error}") from error
    if not reader.tensors:
        raise SdjaxError(f"{path} is a GGUF file that holds no tensors: it is damaged")
    state = {}
    for tensor in reader.tensors:
        if tensor.tensor_type.name not in READ:
            raise SdjaxError(
                f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which is not read; "
                f"read are {', '.join(READ)}"
            )
        field = reader.get_field(_SHAPE + tensor.name)
        shape = tensor.shape[::-1] if field is None else field.contents()
        shape = tuple(map(int, shape))
        if np.prod(shape, dtype=np.int64) != tensor.n_elements:
            raise SdjaxError(f"{path}: {tensor.name} has {tensor.n_elements} numbers, not {shape}")
        state[tensor.name] = _described(gguf, tensor, shape)
    return renamed(state)


def _described(gguf, tensor, shape) -> LazyTensor:
    def load() -> np.ndarray:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)

    return LazyTensor(shape, np.dtype(np.float32), load)


def renamed(state: Mapping[str, LazyTensor]) -> State:
    """Keys of stable-diffusion.cpp's text encoders as original single files have them."""
    both = any(key.startswith("cond_stage_model.1.") for key in state)
    refiner = not both and any(".label_emb." in key for key in state)
    prefixes = {"cond_stage_model.1.": "conditioner.embedders.1."}
    own = "conditioner.embedders.0." if both or refiner else "cond_stage_model."
    prefixes["cond_stage_model."] = own
    result = {}
    fused = {
        old for old in prefixes
        if any(key.startswith(f"{old}transformer.") and ".self_attn.in_proj." in key
               for key in state)
    }  # fmt: skip
    for key, tensor in state.items():
        for old, new in prefixes.items():
            if key.startswith(old):
                rest = key.removeprefix(old)
                if old in fused:
                    rest = f"model.{_open_clip(rest.removeprefix('transformer.'))}"
                key = new + rest
                break
        result[key] = tensor
    return result


def _open_clip(name: str) -> str:
    for pattern, replacement in _OPEN_CLIP:
        name, found = re.subn(f"^{pattern}", replacement, name)
        if found:
            return name
    return name


def write_gguf(path: Path, state: Mapping[str, LazyTensor], family: str, kind: str) -> None:
    """Writes a single file's state as GGUF, one tensor in memory at a time.

    kind: "q8_0" or "q4_0", of the matrices whose rows are a multiple of 32 and which
    stable-diffusion.cpp too has so; other weights are F16, and what has one axis F32.
    """
    gguf = _package()
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(None, _FAMILIES.get(family, family))
    types = {}
    for key, tensor in state.items():
        shape, few = tensor.shape, kinds[kind.upper()]
        block, size = gguf.GGML_QUANT_SIZES[few]
        narrow = len(shape) == 2 and shape[1] % block == 0 and not any(w in key for w in _WIDE)
        own = few if narrow else kinds.F16 if len(shape) > 1 else kinds.F32
        types[key] = own
        count = int(np.prod(shape, dtype=np.int64))
        bytes_ = count // block * size if narrow else count * (2 if own == kinds.F16 else 4)
        dtype = np.dtype(np.float16 if own == kinds.F16 else np.float32)
        writer.add_tensor_info(key, shape, dtype, bytes_, raw_dtype=own)
    partial = path.with_name(path.name + ".part")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, tensor in state.items():
            weight = np.ascontiguousarray(tensor.load(), np.float32)
            writer.write_tensor_data(gguf.quants.quantize(weight, types[key]))
        writer.close()
        partial.replace(path)
    except OSError as error:
        raise SdjaxError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
