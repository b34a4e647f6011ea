"""CLAP's text encoder in files: alone, or in a whole CLAP."""

from collections.abc import Mapping
from typing import Any

from sdjax.models import clap
from sdjax.weights.checkpoint import Part
from sdjax.weights.tensors import LazyTensor

_KEPT = ("text_model.", "text_projection.")


def is_clap(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of CLAP, or of its text encoder."""
    return bool({clap.NAME, clap.WHOLE} & set(config.get("architectures") or ()))


def clap_part(config: Mapping[str, Any], state: Mapping[str, LazyTensor]) -> Part:
    """The text encoder of a folder's configuration and state; what hears is left out."""
    text = config.get("text_config")
    if isinstance(text, Mapping):
        shared = ("projection_dim", "projection_hidden_act")
        config = {**text, **{name: config[name] for name in shared if name in config}}
    kept = {
        key: tensor
        for key, tensor in state.items()
        if key.startswith(_KEPT) and not key.endswith(("position_ids", "token_type_ids"))
    }
    return Part({**config, "architectures": [clap.NAME]}, kept)
