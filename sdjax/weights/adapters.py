"""Adapters as functions of the parameters: the same tree, with some weights changed."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError
from sdjax.weights import lora, peft_config
from sdjax.weights.arrays import all_finite
from sdjax.weights.names import state_from_params, tree_path
from sdjax.weights.single_file import read_file

# Adapters in a folder, as peft and diffusers write them, the safe format first.
_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)


def weight_shapes(params: Mapping) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each part of a pipeline's parameters, its weights' shapes by state-dict key."""
    return {
        part: {key: tensor.shape for key, tensor in state_from_params(tree).items()}
        for part, tree in params.items()
        if part in ("unet", "text_encoder", "text_encoder_2")
    }


def read_lora(path: str | os.PathLike, params: Mapping, layers: int = 2) -> lora.Adapter:
    """Reads an adapter for these parameters; warns of the keys that find no target.

    path: a file, or a folder that peft or diffusers saved it to.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise SdjaxError(f"{path} holds no adapter: expected one of {', '.join(_FILES)}")
        path = found[0]
    state, metadata = read_file(path)
    targets = weight_shapes(params)
    try:
        configs = peft_config.read_configs(path, state, metadata, targets)
        adapter = lora.read_adapter(state, targets, layers, configs)
    except SdjaxError as error:
        raise SdjaxError(f"{path}: {error}") from error
    if adapter.unused:
        warnings.warn(
            f"{path}: {len(adapter.unused)} keys find no target in this model: "
            f"{', '.join(adapter.unused)}",
            stacklevel=3,
        )
    return adapter


def with_adapters(
    params: Mapping, adapters: Sequence[tuple[lora.Adapter, float]]
) -> dict[str, dict]:
    """Parameters with adapters applied, each with its strength; leaves untouched are shared."""
    chosen: dict[lora.Target, list] = {}
    for adapter, strength in adapters:
        for target, factors in adapter.factors.items():
            if strength:
                chosen.setdefault(target, []).append((factors, strength))
    flat = {part: flatten_dict(tree) for part, tree in params.items()}
    for (part, key), factors in chosen.items():
        path = tree_path(key, ndim=2)
        flat[part][path] = _changed(flat[part][path], path[-1], factors, key)
    return {part: unflatten_dict(leaves) for part, leaves in flat.items()}


def _changed(leaf, kind: str, factors, name: str):
    weight = np.asarray(leaf).astype(np.float32)
    if kind == "kernel":
        axes = (weight.ndim - 1, weight.ndim - 2, *range(weight.ndim - 2))
        result = lora.adapted(np.ascontiguousarray(weight.transpose(axes)), factors)
        result = result.transpose(*range(2, weight.ndim), 1, 0)
    else:
        result = lora.adapted(weight, factors)
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(result).astype(leaf.dtype)
    if not all_finite(result):
        raise SdjaxError(
            f"adapters of these strengths make {name} not finite in {leaf.dtype}: lower them, or "
            "load the model in bfloat16 or float32"
        )
    return jax.device_put(result, leaf.sharding) if isinstance(leaf, jax.Array) else result
