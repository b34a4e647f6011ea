"""Text encoders: the layouts of transformers (with and without prefix) and of open_clip.

open_clip keeps q, k and v in one matrix and its projection transposed.
"""

import re
from collections.abc import Mapping

import numpy as np

from sdjax.weights.tensors import LazyTensor, State

PREFIX = "text_model."
PROJECTION = "text_projection.weight"
_PAIRS = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.", "ln_final."),
)
_LAYER_PAIRS = (
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
    ("self_attn.out_proj.", "attn.out_proj."),
)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def is_projected(config: Mapping) -> bool:
    """Whether a text encoder's config.json is of the class with a projection."""
    return "CLIPTextModelWithProjection" in (config.get("architectures") or ())


def without_prefix(state: Mapping[str, LazyTensor]) -> State:
    """A transformers state with every `text_model.` taken off, `text_projection` untouched."""
    return {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}


def with_prefix(state: Mapping[str, LazyTensor]) -> State:
    """A transformers state with `text_model.` before all but `text_projection`."""
    plain = without_prefix(state)
    return {
        key if key.startswith("text_projection") else PREFIX + key: tensor
        for key, tensor in plain.items()
    }


def transposed(tensor: LazyTensor) -> LazyTensor:
    """A matrix transposed."""
    return tensor.map(tensor.shape[::-1], lambda array: array.T)


def from_open_clip(state: Mapping[str, LazyTensor], layers: int | None = None) -> State:
    """An open_clip text tower under transformers' names, without prefix.

    layers: how many of its layers to keep; SD2 uses all but the last. Visual weights, the logit
    scale and the causal mask are left out.
    """
    result: State = {}
    for key, tensor in state.items():
        if key == "text_projection":
            result[PROJECTION] = transposed(tensor)
        elif key == PROJECTION:
            result[key] = tensor
        elif match := re.match(r"transformer\.resblocks\.(\d+)\.(.*)", key):
            if layers is None or int(match[1]) < layers:
                result.update(layer_from_open_clip(f"encoder.layers.{match[1]}.", match[2], tensor))
        else:
            for theirs, ours in _PAIRS:
                if key.startswith(ours):
                    result[theirs + key[len(ours) :]] = tensor
    return result


def layer_from_open_clip(start: str, rest: str, tensor: LazyTensor) -> State:
    """A tensor of an open_clip layer under transformers' names: start, the layer's own prefix."""
    if rest.startswith("attn.in_proj_"):
        leaf = rest.removeprefix("attn.in_proj_")
        width = tensor.shape[0] // len(_PROJECTIONS)
        shape = (width, *tensor.shape[1:])
        return {
            f"{start}self_attn.{name}.{leaf}": tensor.map(
                shape, lambda array, i=i: array[i * width : (i + 1) * width]
            )
            for i, name in enumerate(_PROJECTIONS)
        }
    for theirs, ours in _LAYER_PAIRS:
        if rest.startswith(ours):
            return {start + theirs + rest[len(ours) :]: tensor}
    return {start + rest: tensor}


def to_open_clip(state: Mapping[str, LazyTensor]) -> State:
    """A transformers text state in open_clip's layout, projections fused again."""
    state, result = without_prefix(state), {}
    for key, tensor in state.items():
        if key == PROJECTION:
            result["text_projection"] = transposed(tensor)
        elif match := re.match(r"encoder\.layers\.(\d+)\.(.*)", key):
            start, rest = f"transformer.resblocks.{match[1]}.", match[2]
            if fused := re.match(r"self_attn\.q_proj\.(\w+)", rest):
                parts = [
                    state[key.replace("q_proj", name)] for name in _PROJECTIONS
                ]
                result[f"{start}attn.in_proj_{fused[1]}"] = _stacked(parts)
                continue
            for theirs, ours in _LAYER_PAIRS:
                if rest.startswith(theirs):
                    result[start + ours + rest[len(theirs) :]] = tensor
        else:
            for theirs, ours in _PAIRS:
                if key.startswith(theirs):
                    result[ours + key[len(theirs) :]] = tensor
    return result


def _stacked(parts: list[LazyTensor]) -> LazyTensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return LazyTensor(
        shape, parts[0].dtype, lambda: np.concatenate([part.load() for part in parts])
    )
