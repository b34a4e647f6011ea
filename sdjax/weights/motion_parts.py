"""diffusers' UNetMotionModel, a U-Net with motion modules inside, as the two parts that it is of."""

import re
from collections.abc import Mapping

from sdjax.errors import SdjaxError
from sdjax.weights.checkpoint import Part
from sdjax.weights.tensors import LazyTensor, State

MOTION_MODEL, ADAPTER = "UNetMotionModel", "MotionAdapter"
PART = "motion_adapter"  # as diffusers' pipelines name it
MODULES = "motion_modules"
# Frequencies are made, not learned; files hold them as buffers.
BUFFER = re.compile(r".*\.(pos_encoder|pos_embed)\.pe")
# A field of the whole -> that of a MotionAdapter, and of the U-Net alone.
_OF_MOTION = {
    "block_out_channels": "block_out_channels",
    "layers_per_block": "motion_layers_per_block",
    "motion_max_seq_length": "motion_max_seq_length",
    "motion_num_attention_heads": "motion_num_attention_heads",
    "norm_num_groups": "motion_norm_num_groups",
    "temporal_transformer_layers_per_block": "motion_transformer_layers_per_block",
    "temporal_transformer_layers_per_mid_block": "motion_transformer_layers_per_mid_block",
    "use_motion_mid_block": "use_motion_mid_block",
}
_MOTION_ONLY = set(_OF_MOTION) - {"block_out_channels", "layers_per_block", "norm_num_groups"}


def without_buffers(state: Mapping[str, LazyTensor]) -> State:
    """Motion modules' tensors without what is no parameter."""
    return {key: tensor for key, tensor in state.items() if not BUFFER.fullmatch(key)}


def split(whole: Part) -> tuple[Part, Part]:
    """(U-Net, motion modules) of a UNetMotionModel; SdjaxError for fields that neither has."""
    config = {k: v for k, v in whole.config.items() if v is not None}
    unet = {key: value for key, value in config.items() if key not in _MOTION_ONLY}
    middle, depths = unet.pop("transformer_layers_per_mid_block", None), None
    if middle is not None:
        depths = unet.get("transformer_layers_per_block", 1)
        last = depths[-1] if isinstance(depths, list | tuple) else depths
        if middle != last:
            raise SdjaxError(
                f"transformer_layers_per_mid_block must be that of the last level, {last}, got "
                f"{middle}"
            )
    if unet.pop("mid_block_layers", 1) != 1:
        raise SdjaxError(f"mid_block_layers must be 1, got {config['mid_block_layers']}")
    unet["attention_head_dim"] = unet.pop("num_attention_heads", 8)
    for name in ("down_block_types", "up_block_types"):
        if name in unet:
            unet[name] = [re.sub(r"BlockMotion$", "Block2D", kind) for kind in unet[name]]
    unet["_class_name"] = "UNet2DConditionModel"
    motion = {name: config[field] for field, name in _OF_MOTION.items() if field in config}
    state = whole.state
    return (
        Part(unet, {key: t for key, t in state.items() if MODULES not in key}),
        Part(
            {"_class_name": ADAPTER, **motion},
            without_buffers({key: t for key, t in state.items() if MODULES in key}),
        ),
    )
