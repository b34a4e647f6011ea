"""CLIP's picture encoder: its names in transformers and in open_clip, and what its shapes tell."""

import re
from collections.abc import Mapping

from sdjax.errors import SdjaxError
from sdjax.models import clip_vision
from sdjax.weights import infer, openclip
from sdjax.weights.tensors import LazyTensor, State

PREFIX = "vision_model."
PROJECTION = "visual_projection.weight"
PATCHES = "embeddings.patch_embedding.weight"
# The rest of a whole CLIP, and what the safety checker compares its embedding with.
_BESIDE = re.compile(
    r"text_model\..*|text_projection\.weight|logit_scale|"
    r"(concept|special_care)_embeds(_weights)?"
)
_OPEN_CLIP = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.patch_embedding.weight", "conv1.weight"),
    ("pre_layrnorm.", "ln_pre."),
    ("post_layernorm.", "ln_post."),
)
HEADS = 16  # of ViT-L, ViT-H and ViT-bigG
CLIP_L_WIDTH = 1024  # with quick_gelu, as OpenAI trained it


def vision_state(state: Mapping[str, LazyTensor]) -> State:
    """A picture encoder's tensors under transformers' names without prefix, in any of the layouts.

    Of a whole CLIP the text encoder is left out, of a safety checker its concepts.
    """
    if "visual.conv1.weight" in state:
        return _from_open_clip(state)
    result = {}
    for key, tensor in state.items():
        while key.startswith(PREFIX):  # twice in a safety checker
            key = key.removeprefix(PREFIX)
        if not (_BESIDE.fullmatch(key) or key.endswith("position_ids")):
            result[key] = tensor
    return result


def _from_open_clip(state: Mapping[str, LazyTensor]) -> State:
    result: State = {}
    for key, tensor in state.items():
        if not key.startswith("visual."):
            continue  # the text encoder
        key = key.removeprefix("visual.")
        if key == "proj":
            result[PROJECTION] = openclip.transposed(tensor)
        elif match := re.match(r"transformer\.resblocks\.(\d+)\.(.*)", key):
            start = f"encoder.layers.{match[1]}."
            result.update(openclip.layer_from_open_clip(start, match[2], tensor))
        else:
            pairs = [(theirs, ours) for theirs, ours in _OPEN_CLIP if key.startswith(ours)]
            for theirs, ours in pairs or [(key, key)]:
                result[theirs + key[len(ours) :]] = tensor
    return result


def vision_config(state: Mapping[str, LazyTensor]) -> dict:
    """The config.json of a published ViT-L, ViT-H or ViT-bigG from its state without prefix.

    Raises SdjaxError where the state is none of a picture encoder with 16 heads.
    """
    for key in (PATCHES, "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight"):
        if key not in state:
            raise SdjaxError(f"no CLIP picture encoder was found: its tensor {key} is missing")
    width, channels, patch, _ = state[PATCHES].shape
    if width < CLIP_L_WIDTH:
        raise SdjaxError(
            f"a CLIP picture encoder of width {width} needs its config.json as `config`: only "
            "ViT-L, ViT-H and ViT-bigG are known by their shapes"
        )
    patches = state["embeddings.position_embedding.weight"].shape[0] - 1
    config = {
        "architectures": [clip_vision.PLAIN],
        "hidden_size": width,
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": infer.count(state, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": HEADS,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * round(patches**0.5),
        "hidden_act": "quick_gelu" if width == CLIP_L_WIDTH else "gelu",
    }
    if PROJECTION in state:
        config["architectures"] = [clip_vision.PROJECTED]
        config["projection_dim"] = state[PROJECTION].shape[0]
    return config


def prefixed(state: Mapping[str, LazyTensor]) -> State:
    """The tensors under the names of transformers' CLIPVisionModelWithProjection."""
    return {key if key == PROJECTION else PREFIX + key: t for key, t in state.items()}
