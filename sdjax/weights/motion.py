"""Motion modules of AnimateDiff and their files: diffusers' folders, and the authors' files."""

import os
import re
from collections.abc import Mapping

import jax

from sdjax.errors import SdjaxError
from sdjax.models.motion import MotionConfig
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.weights import infer
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import write_part
from sdjax.weights.kept_shapes import kept
from sdjax.weights.motion_parts import BUFFER, MODULES, PART, without_buffers
from sdjax.weights.names import state_from_params
from sdjax.weights.parts import load, read_alone, unet_inputs
from sdjax.weights.tensors import LazyTensor, State

FIRST_LENGTH = 24  # positions of the first version's modules; later ones have more
LINEAR = "linear"  # the betas that published modules are trained on, and diffusers' default
BETAS = "_betas"  # of a configuration; diffusers passes over such names
HEADS = 8  # of all published modules
_THEIRS = ".temporal_transformer."


def motion_state(state: Mapping[str, LazyTensor]) -> State:
    """Motion modules' tensors under diffusers' names, buffers of positions among them.

    Raises SdjaxError where there are none, or others beside them.
    """
    bare = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    others = [key for key in bare if MODULES not in key]
    if len(others) == len(bare):
        raise SdjaxError(
            f"no motion modules were found among its {len(bare)} tensors "
            f"({', '.join(sorted(bare)[:3])}, …)"
        )
    if others:
        raise SdjaxError(
            f"it holds {len(others)} tensors beside motion modules, which are not understood: "
            f"{', '.join(sorted(others)[:3])}, …"
        )
    return {diffusers_name(key): tensor for key, tensor in bare.items()}


def diffusers_name(key: str) -> str:
    """The authors' name of a tensor, or of a LoRA's target, as diffusers has it."""
    if _THEIRS not in key:
        return key
    key = key.replace(_THEIRS, ".")
    key = re.sub(r"\.attention_blocks\.(\d)\.", lambda m: f".attn{int(m[1]) + 1}.", key)
    key = re.sub(r"\.norms\.(\d)\.", lambda m: f".norm{int(m[1]) + 1}.", key)
    return key.replace(".ff_norm.", ".norm3.")


def motion_config(state: Mapping[str, LazyTensor]) -> dict:
    """The config.json of motion modules from their state, with the published number of heads."""
    levels = infer.count(state, rf"down_blocks\.(\d+)\.{MODULES}\.")
    widths, layers = [], []
    for level in range(levels):
        prefix = f"down_blocks.{level}.{MODULES}"
        name = f"{prefix}.0.norm.weight"
        if name not in state:
            raise SdjaxError(f"the motion modules' tensor {name} is missing: the file is not whole")
        widths.append(state[name].shape[0])
        layers.append(infer.count(state, rf"down_blocks\.{level}\.{MODULES}\.(\d+)\."))
    lengths = {t.shape[1] for key, t in state.items() if BUFFER.fullmatch(key)}
    if len(lengths) > 1:
        raise SdjaxError(f"the motion modules differ in their positions: {sorted(lengths)}")
    config = {
        "block_out_channels": widths,
        "motion_layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "motion_num_attention_heads": HEADS,
        "use_motion_mid_block": any(key.startswith("mid_block.") for key in state),
    }
    return config | ({"motion_max_seq_length": lengths.pop()} if lengths else {})


def find_motion(
    source: str | os.PathLike,
    *,
    variant: str | None = None,
    revision: str | None = None,
    config: str | os.PathLike | None = None,
) -> tuple[Part, bool]:
    """(configuration and state, whether they are run as by the authors) of a source; no weight is
    read.

    Norms are those of diffusers in diffusers' names, and of the authors' code in theirs; or as the
    configuration says, of modules that were saved here.
    """
    theirs = False

    def renamed(state):
        nonlocal theirs
        theirs = any(_THEIRS in key for key in state)
        return motion_state(state)

    part = read_alone(source, PART, variant, revision, config, renamed, motion_config)
    fields = dict(part.config)
    if theirs:
        first = fields.get("motion_max_seq_length") == FIRST_LENGTH
        fields |= {"motion_norm_over_frames": False, "unet_norm_over_frames": first}
    return Part(fields, without_buffers(part.state)), not fields.get("motion_norm_over_frames", True)


def read_motion(
    part: Part, unet: UNetConfig, dtype: str, source: str | os.PathLike
) -> tuple[MotionConfig, dict]:
    """(configuration, parameters by block) of what `find_motion` found in a source.

    Raises SdjaxError where the modules are for another U-Net than the given one.
    """

    def shapes(motion):
        motion.check_fits(unet)
        return motion_shapes(unet, motion)

    return load(part, MotionConfig, shapes, dtype, source)


def write_motion(
    config: MotionConfig, params: Mapping, folder: str | os.PathLike, dtype: str,
    betas: str = LINEAR,
) -> None:
    """Writes motion modules as diffusers' MotionAdapter loads them; betas: what they were trained
    on.
    """
    own = {BETAS: betas} if betas != LINEAR else {}
    write_part(folder, config.to_dict() | own, state_from_params(params), dtype)


@kept
def motion_shapes(unet: UNetConfig, motion: MotionConfig) -> dict:
    """Shapes of the motion modules' parameters inside a U-Net, by block."""
    network = UNet(unet, motion=motion)
    given = unet_inputs(unet)
    shapes = jax.eval_shape(network.init, jax.random.key(0), given[0][:, None], *given[1:])
    return motion_of(shapes["params"])


def motion_of(params: Mapping) -> dict:
    """The motion modules among a U-Net's parameters, by block."""
    found = {
        block: {name: leaf for name, leaf in inside.items() if name.startswith(MODULES)}
        for block, inside in params.items()
    }
    return {block: inside for block, inside in found.items() if inside}


def still(params: Mapping) -> dict:
    """A U-Net's parameters without motion modules."""
    return {
        block: {name: leaf for name, leaf in inside.items() if not name.startswith(MODULES)}
        for block, inside in params.items()
    }


def with_motion(params: Mapping, motion: Mapping) -> dict:
    """A U-Net's parameters with these motion modules in the place of others."""
    return {block: {**inside, **motion.get(block, {})} for block, inside in still(params).items()}
