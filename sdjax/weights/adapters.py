"""Adapters as functions of the parameters: the same tree, with some weights changed."""

import dataclasses
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError
from sdjax.models.quantized import Quantized
from sdjax.weights import adapter_names, lora, peft_config
from sdjax.weights.arrays import all_finite
from sdjax.weights.motion import MODULES, diffusers_name
from sdjax.weights.names import state_from_params, state_key
from sdjax.weights.quantized.raised import beside, finite, raised
from sdjax.weights.single_file import read_file
from sdjax.weights.tensors import LazyTensor
from sdjax.weights.textual_inversion import BUNDLE, bundled_words

Target = tuple[str, str]
"""A part ("unet", "text_encoder", …) and the state-dict key of one of its weights or biases."""

# Adapters in a folder, as peft and diffusers write them, the safe format first.
_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
_FIRST = "load those that it is for first, with load_motion (--motion)"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Factors for each target they change, and the keys of the file that found none."""

    factors: Mapping[Target, Mapping[str, np.ndarray]]
    unused: tuple[str, ...]


def weight_shapes(params: Mapping) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each part of a pipeline's parameters, its weights' shapes by state-dict key."""
    return {
        part: {key: tensor.shape for key, tensor in state_from_params(tree).items()}
        for part, tree in params.items()
        if part in ("unet", "text_encoder", "text_encoder_2")
    }


def read_lora(path: str | os.PathLike, params: Mapping, layers: int = 2) -> Adapter:
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
        adapter = read_adapter(state, targets, layers, configs)
    except SdjaxError as error:
        raise SdjaxError(f"{path}: {error}") from error
    if words := sorted(bundled_words(adapter.unused)):
        warnings.warn(
            f"{path} holds learned words too, which load_textual_inversion(…, token=…) reads: "
            f"{', '.join(words)}",
            stacklevel=3,
        )
    if unused := [key for key in adapter.unused if not key.startswith(BUNDLE)]:
        warnings.warn(
            f"{path}: {len(unused)} keys find no target in this model: {', '.join(unused)}",
            stacklevel=3,
        )
    return adapter


def read_adapter(
    state: Mapping[str, LazyTensor],
    targets: Mapping[str, Mapping[str, tuple[int, ...]]],
    layers: int = 2,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Adapter:
    """Finds the target of every tensor of an adapter file.

    targets: for each part, the shape of every weight by its state-dict key. layers: residual blocks
    a level, for SGM's block names. configs: peft's configuration of each part that has one; it
    gives the scale of factors that come without an alpha, which else is 1. Raises SdjaxError where
    no tensor finds a target, or a module's factors are unknown, given twice, missing, misshapen or
    not finite.
    """
    state = {diffusers_name(key): tensor for key, tensor in state.items()}
    moving = any(MODULES in key for key in targets.get("unet", ()))
    if not moving and any(MODULES in key for key in state):
        raise SdjaxError(f"it is of motion modules, for clips: {_FIRST}")
    if kind := adapter_names.other_kind(state):
        raise SdjaxError(f"it is {kind}: expected an adapter of the U-Net or the text encoders")
    names = adapter_names.module_names(targets, layers)
    found, unused = _found(state, names)
    if not found:
        raise SdjaxError(
            f"no tensor of the adapter fits this model: its {len(state)} keys begin with "
            f"{', '.join(sorted(state)[:2])}"
        )
    factors: dict[Target, dict[str, np.ndarray]] = defaultdict(dict)
    for name, tensors in found.items():
        parts = {factor: tensor.load().astype(np.float32) for factor, tensor in tensors.items()}
        for factor, array in parts.items():
            if not all_finite(array):
                raise SdjaxError(f"the {factor} of {name} holds values that are not finite")
        for target, own in _chosen(names[name], parts, targets).items():
            known = factors[target]
            for factor, array in own.items():
                if factor in known and not np.array_equal(known[factor], array):
                    raise SdjaxError(f"it gives the {factor} of {name} twice, under two names")
            known |= own
    for (part, key), parts in factors.items():
        module = key.rpartition(".")[0]
        if configs and part in configs and not {"alpha", "diff"} & set(parts):
            long = module if part == "unet" else f"text_model.{module.removeprefix('text_model.')}"
            parts |= peft_config.settings(configs[part], long)
        try:
            if key not in targets[part]:
                raise SdjaxError(f"this model has no {key} to change")
            if "oft_R" in parts and "terms" not in parts:
                raise SdjaxError(
                    "its oft_R needs peft's adapter_config.json, which says how it rotates"
                )
            lora.difference(parts, targets[part][key])
            lora.lengths(parts, targets[part][key])
        except SdjaxError as error:
            raise SdjaxError(f"{module}: {error}") from error
    return Adapter(factors, tuple(unused))


def _found(state, names) -> tuple[dict[str, dict[str, LazyTensor]], list[str]]:
    """Tensors by the names of module and factor, and the keys that name no module of the model.

    SdjaxError for a factor that is not known of a module that is: half an adapter is another one.
    """
    found: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    unused = []
    for key, tensor in state.items():
        name, factor = adapter_names.split(key)
        if factor and name in names:
            if factor in found[name]:
                raise SdjaxError(f"it gives the {factor} of {name} twice: expected one adapter")
            found[name][factor] = tensor
        elif known := adapter_names.module_of(key, names):
            rest = key.removeprefix(f"{known}.")
            raise SdjaxError(f"{known}: its {rest!r} is none of the factors that are read")
        else:
            unused.append(key)
    for name, tensors in found.items():
        if set(tensors) == {"scaling"}:
            raise SdjaxError(f"it holds whole weights ({name}.weight): expected an adapter")
    return found, unused


def _chosen(candidates, parts, targets) -> dict[Target, dict[str, np.ndarray]]:
    """Factors by the weights and biases they change.

    peft does not say which of two text encoders a name is of: it is the first that they fit.
    """
    for candidate in candidates if len(candidates) > 1 else ():
        chosen = _by_target(candidate, parts)
        try:
            for (part, key), factors in chosen.items():
                lora.difference(factors, targets[part][key])
            return chosen
        except (SdjaxError, KeyError):
            continue
    return _by_target(candidates[0], parts)


def _by_target(module: adapter_names.Module, parts) -> dict[Target, dict[str, np.ndarray]]:
    part, name = module
    weight = {factor: array for factor, array in parts.items() if factor != "diff_b"}
    chosen = {(part, f"{name}.weight"): weight} if weight else {}
    if "diff_b" in parts:
        chosen[part, f"{name}.bias"] = {"diff": parts["diff_b"]}
    return chosen


def with_adapters(
    params: Mapping, adapters: Sequence[tuple[Adapter, float]]
) -> dict[str, dict]:
    """Parameters with adapters applied, each with its strength; leaves untouched are shared.

    On kernels of few bits LoRAs are added where the kernel is used.
    """
    chosen: dict[Target, list] = {}
    for adapter, strength in adapters:
        for target, factors in adapter.factors.items():
            chosen.setdefault(target, []).append((factors, strength))
    flat = {part: flatten_dict(tree) for part, tree in params.items()}
    paths = {part: {state_key(path): path for path in leaves} for part, leaves in flat.items()}
    for (part, key), factors in chosen.items():
        path = paths[part][key]
        leaf = flat[part][path]
        if not isinstance(leaf, Quantized):  # else a strength of 0 stays, for the same program
            factors = [(own, strength) for own, strength in factors if strength]
        if factors:
            flat[part][path] = _changed(leaf, path[-1], factors, key)
    return {part: unflatten_dict(leaves) for part, leaves in flat.items()}


def _changed(leaf, kind: str, factors, name: str):
    if isinstance(leaf, Quantized):
        result = raised(leaf, factors)
        if not finite(result):
            raise _not_finite(name, leaf.dtype)
        return beside(result, leaf)
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
        raise _not_finite(name, leaf.dtype)
    return jax.device_put(result, leaf.sharding) if isinstance(leaf, jax.Array) else result


def _not_finite(name: str, dtype) -> SdjaxError:
    return SdjaxError(
        f"adapters of these strengths make {name} not finite in {dtype}: lower them, or "
        "load the model in bfloat16 or float32"
    )
