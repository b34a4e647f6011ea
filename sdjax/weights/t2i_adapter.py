"""T2I-Adapters and their files: diffusers' folders, and single files in diffusers' or the authors'
names."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models import t2i_adapter
from sdjax.models.t2i_adapter import FULL, LIGHT, XL
from sdjax.weights import infer
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import STEMS
from sdjax.weights.kept_shapes import kept
from sdjax.weights.parts import Pretrained, read_alone
from sdjax.weights.tensors import LazyTensor, State

PREFIX = "adapter."
BLOCKS = 2  # residual blocks of a level in the authors' full adapters, which count through
# Pixels along each side of the picture that become channels, of published adapters; and how many
# channels that makes of a grey or a coloured picture.
FACTOR, XL_FACTOR = 8, 16
XL_INPUTS = (XL_FACTOR**2, 3 * XL_FACTOR**2)


def is_t2i_adapter(keys) -> bool:
    """Whether these are a T2I-Adapter's state-dict keys, in either way of naming."""
    return any(re.match(r"(adapter\.)?body\.0\.(resnets\.0|body\.0|block1)\.", key) for key in keys)


def adapter_state(state: Mapping[str, LazyTensor]) -> State:
    """A T2I-Adapter's tensors under diffusers' names; SdjaxError where it is none."""
    if "style_embedding" in state:
        raise SdjaxError(
            "this is T2I-Adapter's style adapter, which is not supported: an IP-Adapter takes a "
            "picture for its style"
        )
    if not is_t2i_adapter(state):
        raise SdjaxError(
            f"no T2I-Adapter was found among its {len(state)} tensors "
            f"({', '.join(sorted(state)[:3])}, …)"
        )
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    if any(key.startswith("body.0.resnets.") for key in bare):
        return {PREFIX + key: tensor for key, tensor in bare.items()}
    rename = _light_name if "body.0.in_conv.weight" in bare else _full_name
    return {PREFIX + rename(key): tensor for key, tensor in bare.items()}


def _light_name(key: str) -> str:
    return re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", key)


def _full_name(key: str) -> str:
    match = re.fullmatch(r"body\.(\d+)\.(\w+)(\..*)", key)
    if match is None:
        return key
    level, block = divmod(int(match[1]), BLOCKS)
    inside = "" if match[2] == "in_conv" else f"resnets.{block}."
    return f"body.{level}.{inside}{match[2]}{match[3]}"


def adapter_config(state: Mapping[str, LazyTensor]) -> dict:
    """The config.json of a T2I-Adapter from its state, with the published pixels per feature."""
    levels = infer.count(state, r"adapter\.body\.(\d+)\.")
    light = "adapter.body.0.out_conv.weight" in state
    first = "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"
    last = "out_conv" if light else "resnets.0.block1"
    names = [f"adapter.body.{i}.{last}.weight" for i in range(levels)]
    for name in (first, *names):
        if name not in state:
            raise SdjaxError(f"the T2I-Adapter's tensor {name} is missing: the file is not whole")
    inputs, widths = state[first].shape[1], [state[name].shape[0] for name in names]
    kind = LIGHT if light else XL if inputs in XL_INPUTS else FULL
    factor = XL_FACTOR if kind == XL else FACTOR
    return {
        "_class_name": "T2IAdapter",
        "in_channels": inputs // factor**2,
        "channels": widths[:-1] if light else widths,
        "num_res_blocks": infer.count(state, r"adapter\.body\.0\.resnets\.(\d+)\."),
        "downscale_factor": factor,
        "adapter_type": kind,
    }


@kept
def adapter_shapes(config: t2i_adapter.T2IAdapterConfig) -> dict:
    """Shapes of a T2I-Adapter's parameters."""
    side = config.downscale_factor
    picture = jnp.zeros((1, side, side, config.in_channels))
    network = t2i_adapter.T2IAdapter(config)
    return jax.eval_shape(network.init, jax.random.key(0), picture)["params"]


class T2IAdapter(Pretrained, t2i_adapter.T2IAdapter):
    """A picture's features for the U-Net; see `sdjax.models.t2i_adapter.T2IAdapter`."""

    part, stem = "adapter", STEMS[0]  # as diffusers' pipelines name it
    config_class, shapes = t2i_adapter.T2IAdapterConfig, staticmethod(adapter_shapes)

    @classmethod
    def read(cls, source, part, variant, revision, config) -> Part:
        return read_alone(
            source, part or cls.part, variant, revision, config, adapter_state, adapter_config
        )
