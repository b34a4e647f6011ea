"""Keys of the original LDM and SGM files ↔ diffusers' keys: U-Net, ControlNet and autoencoder.

Original U-Nets number their blocks through: with L residual blocks a level, level i, block j is
`input_blocks[(L+1)·i + j + 1]` on the way down and `output_blocks[(L+1)·i + j]` on the way up; an
entry's parts are numbered too (residual block, attention, resampling). Every function takes a key
without the prefix of its network and gives the other one's; what no rule covers stays as it is.
"""

import re
from collections.abc import Iterable, Mapping

from sdjax.weights.tensors import LazyTensor, State
from sdjax.weights.video_names import named_in_time

# Fragments that stand for each other, diffusers' first, at the beginning of a key.
_EDGES = (
    ("conv_in.", "input_blocks.0.0."),
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("class_embedding.", "label_emb."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
    ("mid_block.resnets.0.", "middle_block.0."),
    ("mid_block.attentions.0.", "middle_block.1."),
    ("mid_block.resnets.1.", "middle_block.2."),
    ("controlnet_mid_block.", "middle_block_out.0."),
    ("controlnet_cond_embedding.conv_in.", "input_hint_block.0."),
    ("controlnet_cond_embedding.conv_out.", "input_hint_block.14."),
)
# LCM's input for the guidance: single files have it under diffusers' name, which stays as it is.
_CONDITION = (("time_embed.cond_proj.", "time_embedding.cond_proj."),)
# Inside a residual block.
_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
)
# Inside the autoencoder's one attention; files of old diffusers have the middle names.
_VAE_ATTENTION = (
    ("group_norm.", "group_norm.", "norm."),
    ("to_q.", "query.", "q."),
    ("to_k.", "key.", "k."),
    ("to_v.", "value.", "v."),
    ("to_out.0.", "proj_attn.", "proj_out."),
)


def _replaced(key: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """The key with the first fragment that it begins with replaced, or None."""
    for old, new in pairs:
        if key.startswith(old):
            return new + key[len(old) :]
    return None


def _swapped(pairs):
    return tuple((new, old) for old, new in pairs)


def _inside_resnet(key: str, pairs) -> str:
    """A key with the part after the block's own prefix renamed, if it is a residual block's."""
    for old, new in pairs:
        head, found, tail = key.partition("." + old)
        if found:
            return f"{head}.{new}{tail}"
    return key


def unet_to_original(key: str, layers: int, attended: bool = True) -> str:
    """The original key of a U-Net's or ControlNet's diffusers key.

    layers: residual blocks a level, `layers_per_block`. attended: whether an upsampler's block has
    attention, before which it is then numbered.
    """
    if match := re.match(r"controlnet_down_blocks\.(\d+)\.(.*)", key):
        return f"zero_convs.{match[1]}.0.{match[2]}"
    if match := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.*)", key):
        return f"input_hint_block.{2 * int(match[1]) + 2}.{match[2]}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    if match is None:
        renamed = _replaced(key, _EDGES) or key
        return _inside_resnet(renamed, _RESNET) if ".resnets." in key else renamed
    way, kind, rest = match[1], match[3], match[5]
    level, block = int(match[2]), int(match[4])
    if way == "down" and kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (level + 1)}.0.{rest.replace('conv.', 'op.', 1)}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * level + layers}.{2 if attended else 1}.{rest}"
    start = "input_blocks" if way == "down" else "output_blocks"
    index = (layers + 1) * level + block + (way == "down")
    if kind == "resnets":
        return f"{start}.{index}.0.{_replaced(rest, _RESNET) or rest}"
    return f"{start}.{index}.1.{rest}"


def unet_from_original(key: str, layers: int) -> str:
    """The diffusers key of a U-Net's or ControlNet's original key."""
    if match := re.match(r"zero_convs\.(\d+)\.0\.(.*)", key):
        return f"controlnet_down_blocks.{match[1]}.{match[2]}"
    renamed = _replaced(key, (*_swapped(_EDGES), *_CONDITION))
    if renamed is not None:
        return _inside_resnet(renamed, _swapped(_RESNET)) if ".resnets." in renamed else renamed
    if match := re.match(r"input_hint_block\.(\d+)\.(.*)", key):
        return f"controlnet_cond_embedding.blocks.{int(match[1]) // 2 - 1}.{match[2]}"
    match = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.*)", key)
    if match is None:
        return key
    way, rest = "down" if match[1] == "input" else "up", match[4]
    level, block = divmod(int(match[2]) - (way == "down"), layers + 1)
    start = f"{way}_blocks.{level}"
    if way == "down" and rest.startswith("op."):
        return f"{start}.downsamplers.0.conv.{rest[3:]}"
    if way == "up" and rest.startswith("conv."):
        return f"{start}.upsamplers.0.{rest}"
    if match[3] == "0":
        return f"{start}.resnets.{block}.{_replaced(rest, _swapped(_RESNET)) or rest}"
    return f"{start}.attentions.{block}.{rest}"


def vae_to_original(key: str, levels: int) -> str:
    """The original key of an AutoencoderKL's diffusers key; its decoder counts from the finest."""
    key = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", key)
    key = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key)
    key = re.sub(r"samplers\.0\.", "sample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    key = re.sub(r"resnets\.(\d+)\.", r"block.\1.", key)
    if ".attentions.0." in key:
        key = re.sub(r"mid_block\.attentions\.0\.", "mid.attn_1.", key)
        head, _, tail = key.partition("attn_1.")
        key = f"{head}attn_1.{_replaced(tail, ((new, old) for new, _, old in _VAE_ATTENTION))}"
    return key.replace("conv_shortcut.", "nin_shortcut.").replace("conv_norm_out.", "norm_out.")


def vae_from_original(key: str, levels: int) -> str:
    """The diffusers key of an AutoencoderKL's original, old diffusers or diffusers key."""
    key = re.sub(r"\bup\.(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", key)
    key = re.sub(r"\bdown\.(\d+)\.", r"down_blocks.\1.", key)
    key = re.sub(r"\b(up|down)sample\.", r"\1samplers.0.", key)
    key = re.sub(r"mid\.block_(\d+)\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}.", key)
    key = re.sub(r"\bblock\.(\d+)\.", r"resnets.\1.", key)
    key = key.replace("mid.attn_1.", "mid_block.attentions.0.")
    head, found, tail = key.partition("attentions.0.")
    if found:
        pairs = [(old, new) for new, *others in _VAE_ATTENTION for old in others]
        key = head + found + (_replaced(tail, pairs) or tail)
    key = key.replace("nin_shortcut.", "conv_shortcut.")
    return re.sub(r"\bnorm_out\.", "conv_norm_out.", key)


def _renamed(state: Mapping[str, LazyTensor], rename) -> State:
    return {rename(key): tensor for key, tensor in state.items()}


def original_unet(state: Mapping[str, LazyTensor], layers: int) -> State:
    """A U-Net's or ControlNet's state under its original keys."""
    with_attention = {key.split(".attentions.")[0] for key in state if ".attentions." in key}
    return _renamed(
        state,
        lambda key: unet_to_original(key, layers, key.split(".upsamplers.")[0] in with_attention),
    )


def diffusers_unet(state: Mapping[str, LazyTensor]) -> State:
    """A U-Net's or ControlNet's state under diffusers' keys, whichever it has."""
    if "input_blocks.0.0.weight" not in state:
        return dict(state)
    downs = [re.match(r"input_blocks\.(\d+)\.0\.op\.", key) for key in state]
    first = min((int(match[1]) for match in downs if match), default=2)
    return named_in_time(_renamed(state, lambda key: unet_from_original(key, first - 1)))


def original_vae(state: Mapping[str, LazyTensor]) -> State:
    """An AutoencoderKL's state under its original keys, its attention as 1x1 convolutions."""
    levels = _levels(state, r"encoder\.down_blocks\.(\d+)\.")
    result = {}
    for key, tensor in state.items():
        name = vae_to_original(key, levels)
        if ".attn_1." in name and len(tensor.shape) == 2:
            shape = (*tensor.shape, 1, 1)
            tensor = tensor.map(shape, lambda array, shape=shape: array.reshape(shape))
        result[name] = tensor
    return result


def diffusers_vae(state: Mapping[str, LazyTensor]) -> State:
    """An AutoencoderKL's state under diffusers' keys, whichever layout or age it has."""
    levels = _levels(state, r"encoder\.down\.(\d+)\.")
    result = {}
    for key, tensor in state.items():
        name = vae_from_original(key, levels)
        if ".attentions." in name and tensor.shape[2:] == (1, 1):
            shape = tensor.shape[:2]
            tensor = tensor.map(shape, lambda array, shape=shape: array.reshape(shape))
        result[name] = tensor
    return named_in_time(result)


def _levels(state: Iterable[str], pattern: str) -> int:
    """How many levels the keys number."""
    found = (re.match(pattern, key) for key in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
