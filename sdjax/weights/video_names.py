"""Stable Video Diffusion's own names of what looks along the frames -> diffusers' names.

Its files have the keys of SGM otherwise: `sdjax.weights.original` has renamed these already.
"""

import re
from collections.abc import Mapping

from sdjax.weights.tensors import LazyTensor, State

_MARK = ".time_stack."
_RESNET = re.compile(r"(.*\bresnets\.\d+\.)(.*)")
_INSIDE = (
    ("in_layers.0.", "norm1."), ("in_layers.2.", "conv1."), ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."), ("out_layers.3.", "conv2."),
)  # fmt: skip
_POSITIONS = (("time_pos_embed.0.", "linear_1."), ("time_pos_embed.2.", "linear_2."))


def named_in_time(state: Mapping[str, LazyTensor]) -> State:
    """A U-Net's or an autoencoder's state under diffusers' names; others as they are."""
    if not any(_MARK in key for key in state):
        return dict(state)
    return {_name(key): tensor for key, tensor in state.items()}


def _name(key: str) -> str:
    if key.startswith("encoder."):
        return key  # which knows nothing of frames
    for theirs, ours in _POSITIONS:
        key = key.replace(theirs, f"time_pos_embed.{ours}")
    key = key.replace("decoder.conv_out.time_mix_conv.", "decoder.time_conv_out.")
    match = _RESNET.fullmatch(key)
    if match is None:
        return key.replace(_MARK, ".temporal_transformer_blocks.")
    block, inside = match.groups()
    if inside.endswith("mix_factor"):
        return f"{block}time_mixer.mix_factor"
    if not inside.startswith(_MARK[1:]):
        return f"{block}spatial_res_block.{inside}"
    inside = inside.removeprefix(_MARK[1:])
    for theirs, ours in _INSIDE:
        inside = inside.replace(theirs, ours)
    return f"{block}temporal_res_block.{inside}"
