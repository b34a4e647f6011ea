"""CLIP's picture encoder and its files: alone, in a whole CLIP, or in a safety checker.

Read are transformers' folders and single files in transformers' or open_clip's names.
"""

import functools
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models import clip_vision
from sdjax.weights import infer, openclip
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import STEMS, read_part
from sdjax.weights.hub import locate
from sdjax.weights.parts import Pretrained, read_alone
from sdjax.weights.single_file import read_file
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


@functools.cache
def vision_shapes(config: clip_vision.CLIPVisionConfig) -> dict:
    """Shapes of a picture encoder's parameters."""
    pictures = jnp.zeros((1, config.image_size, config.image_size, config.num_channels))
    network = clip_vision.CLIPVision(config)
    return jax.eval_shape(network.init, jax.random.key(0), pictures)["params"]


def concepts(
    source, part: str, variant: str | None, revision: str | None, width: int
) -> dict[str, np.ndarray]:
    """What a safety checker compares a picture's embedding with: float32 vectors and thresholds.

    width: of the embedding. Raises SdjaxError where they are missing or of another width.
    """
    path = locate(source, variant, revision)
    state = read_part(path, part, variant).state if path.is_dir() else read_file(path)[0]
    found = {}
    for name in ("concept_embeds", "special_care_embeds"):
        for key in (name, f"{name}_weights"):
            if key not in state:
                raise SdjaxError(f"{source} is no safety checker: its tensor {key} is missing")
            found[key] = np.asarray(state[key].load(), np.float32)
        vectors, thresholds = found[name].shape, found[f"{name}_weights"].shape
        if vectors != (*thresholds, width):
            raise SdjaxError(
                f"{source}: {name} must have a threshold each and width {width}, got {vectors} and "
                f"{thresholds}"
            )
    return found


class CLIPVision(Pretrained, clip_vision.CLIPVision):
    """CLIP's picture transformer; see `sdjax.models.clip_vision.CLIPVision`."""

    part, stem = "image_encoder", STEMS[1]
    config_class, shapes = clip_vision.CLIPVisionConfig, staticmethod(vision_shapes)

    @classmethod
    def read(cls, source, part, variant, revision, config) -> Part:
        name = part or cls.part
        found = read_alone(
            source, name, variant, revision, config, vision_state, vision_config
        )
        described, state = found.config, found.state
        projected = clip_vision.PROJECTED in (described.get("architectures") or ())
        if projected or described.get("vision_config"):
            state = {key if key == PROJECTION else PREFIX + key: t for key, t in state.items()}
        return Part(described, state)
