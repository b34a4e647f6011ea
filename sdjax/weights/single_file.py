"""Original single files of Stable Diffusion (.safetensors, .ckpt), read and written.

Read are whole models (SD1, SD2, SDXL, refiner, in all their input channels) and parts alone
(U-Net, ControlNet, autoencoder, text encoder) in the original or in diffusers' names.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.weights import infer, openclip, original
from sdjax.weights.checkpoint import Checkpoint, Part
from sdjax.weights.pickles import read_pickle
from sdjax.weights.tensors import (
    LazyTensor,
    State,
    read_safetensors,
    write_safetensors,
)

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CONTROL = "control_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
FIRST = "conditioner.embedders.0."
SECOND = "conditioner.embedders.1."
# SD2 takes the state before the last layer: its last layer is not part of the model.
SD2_LAYERS = 24

_TINY = "encoder.layers.0.weight"  # TAESD begins with a convolution

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "refiner": "stable-diffusion-xl-v1-refiner",
    "x4": "stable-diffusion-v2-x4-upscaler",
}
# By the U-Net's input channels.
_VARIANTS = {9: "inpainting", 8: "edit", 5: "depth"}


def read_file(path: str | os.PathLike) -> tuple[State, dict[str, str]]:
    """Describes the tensors of a .safetensors, .ckpt, .bin or .pt file: (state, metadata).

    The kind is told by the content, not by the name. Raises SdjaxError for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise SdjaxError(f"no such file: {path}")
    if path.suffix in (".ckpt", ".bin", ".pt", ".pth"):
        content = read_pickle(path)
        inner = content.get("state_dict", content)
        state = {
            str(key): tensor
            for key, tensor in (inner if isinstance(inner, dict) else {}).items()
            if isinstance(tensor, LazyTensor)
        }
        if not state:
            raise SdjaxError(f"{path} holds no tensors")
        step = content.get("global_step")
        return state, {"global_step": str(step)} if type(step) is int else {}
    return read_safetensors(path)


def under(state: Mapping[str, LazyTensor], prefix: str) -> State:
    """The tensors whose key begins with a prefix, without it."""
    return {key[len(prefix) :]: t for key, t in state.items() if key.startswith(prefix)}


def read_single_file(
    path: str | os.PathLike,
    configs: Mapping[str, Mapping] | None = None,
    prediction_type: str | None = None,
) -> Checkpoint:
    """Reads an original file, or one part alone, as a `Checkpoint`.

    configs: config.json of parts, in place of what is inferred from the shapes.
    prediction_type: "epsilon" or "v_prediction"; by default the file's metadata say, or the
        published models: v for SD2 from text alone, epsilon for all others.
    Raises SdjaxError where the file is not a Stable Diffusion checkpoint.
    """
    state, metadata = read_file(path)
    states = split_parts(state)
    if not states:
        raise SdjaxError(
            f"{path} is not a Stable Diffusion checkpoint: no U-Net, ControlNet, autoencoder or "
            f"text encoder was found among its {len(state)} tensors "
            f"({', '.join(sorted(state)[:3])}, …)"
        )
    given = configs or {}
    try:
        parts = configured(states, given)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, SdjaxError):
            raise SdjaxError(f"{path}: {error}") from error
        raise SdjaxError(f"{path} is not a whole checkpoint: {error} is missing") from error
    family = family_of(parts)
    scheduler = infer.scheduler_config(
        family, prediction_type or _prediction(family, parts, state, metadata)
    )
    low_res = infer.low_res_scheduler_config() if family == "x4" else {}
    return Checkpoint(
        parts,
        family,
        given.get("scheduler", scheduler),
        given.get("low_res_scheduler", low_res),
        metadata,
    )


def split_parts(state: Mapping[str, LazyTensor]) -> dict[str, State]:
    """The parts found in a file, each under diffusers' or transformers' names."""
    parts: dict[str, State] = {}
    unet, vae, control = (under(state, prefix) for prefix in (UNET, VAE, CONTROL))
    if unet:
        parts["unet"] = original.diffusers_unet(unet)
    if control:
        parts["controlnet"] = original.diffusers_unet(control)
    if vae:
        parts["vae"] = _vae(vae)
    texts = [
        _text(state, CLIP, OPEN_CLIP),
        _text(state, f"{FIRST}transformer.", f"{FIRST}model."),
        _text(state, f"{SECOND}transformer.", f"{SECOND}model."),
    ]
    found = [text for text in texts if text]
    if len(found) == 1 and f"{FIRST}model.ln_final.weight" in state:
        parts["text_encoder_2"] = found[0]  # the refiner has only SDXL's second encoder
    else:
        parts |= dict(zip(("text_encoder", "text_encoder_2"), found, strict=False))
    return parts or _part_alone(state)


def _part_alone(state: Mapping[str, LazyTensor]) -> dict[str, State]:
    """The one part that a file without prefixes holds, or nothing."""
    if "input_blocks.0.0.weight" in state or "down_blocks.0.resnets.0.conv1.weight" in state:
        control = any("controlnet" in key or key.startswith("zero_convs.") for key in state)
        return {"controlnet" if control else "unet": original.diffusers_unet(state)}
    if "encoder.conv_in.weight" in state and "decoder.conv_in.weight" in state:
        return {"vae": _vae(state)}
    if _TINY in state:
        return {"vae": dict(state)}
    text = _text(state, "", "")
    return {"text_encoder": text} if text else {}


def _vae(state: Mapping[str, LazyTensor]) -> State:
    """An autoencoder without the losses and averages that its own training files carry."""
    kept = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    return original.diffusers_vae({k: t for k, t in state.items() if k.startswith(kept)})


def _text(state: Mapping[str, LazyTensor], prefix: str, open_prefix: str) -> State:
    """A text encoder under transformers' names without prefix, or nothing."""
    plain = openclip.without_prefix(under(state, prefix))
    if "embeddings.token_embedding.weight" in plain:
        kept = ("embeddings.", "encoder.", "final_layer_norm.", "text_projection.")
        return {
            k: t
            for k, t in plain.items()
            if k.startswith(kept) and not k.endswith("position_ids")
        }
    fused = under(state, open_prefix)
    if "transformer.resblocks.0.ln_1.weight" not in fused:
        return {}
    layers = infer.count(fused, r"transformer\.resblocks\.(\d+)\.")
    if open_prefix == OPEN_CLIP:
        # A file written from diffusers has no projection and the last layer already gone.
        whole = "text_projection" in fused or layers == SD2_LAYERS
        fused.pop("text_projection", None)
        layers -= whole
    return openclip.from_open_clip(fused, layers)


def configured(states: Mapping[str, State], given: Mapping[str, Mapping]) -> dict[str, Part]:
    family = "sd1"
    if "unet" in states:
        family = infer.unet_family(given.get("unet") or infer.unet_config(states["unet"]))
    parts = {}
    for name, state in states.items():
        if name in given:
            config = given[name]
        elif name == "unet":
            config = infer.unet_config(state)
        elif name == "controlnet":
            config = infer.controlnet_config(state)
        elif name == "vae" and _TINY in state:
            config = {"_class_name": "AutoencoderTiny"}
        elif name == "vae":
            config = infer.vae_config(state, family)
        else:
            config = infer.text_config(state)
        if name.startswith("text_encoder") and "text_projection.weight" in state:
            state = openclip.with_prefix(state)
        parts[name] = Part(config, state)
    return parts


def family_of(parts: Mapping[str, Part]) -> str:
    """Whose conventions a file of these parts follows: sd1, sd2, sdxl, refiner or x4."""
    if "unet" in parts:
        family = infer.unet_family(parts["unet"].config)
        if family in ("sd1", "sd2") and "text_encoder" in parts:
            # The layout of the text encoder decides, whatever projections the U-Net has.
            act = parts["text_encoder"].config.get("hidden_act", "quick_gelu")
            return "sd1" if act == "quick_gelu" else "sd2"
        return family
    if "controlnet" in parts:
        return infer.unet_family(parts["controlnet"].config)
    if "vae" in parts and parts["vae"].config.get("scaling_factor") == infer.SCALING["sdxl"]:
        return "sdxl"
    return "sd1"


def _prediction(family, parts, state, metadata) -> str:
    said = metadata.get("modelspec.prediction_type", "")
    if said:
        return "v_prediction" if said.startswith("v") else "epsilon"
    if "v_pred" in state or family == "x4":
        return "v_prediction"
    plain = "unet" in parts and parts["unet"].config["in_channels"] == 4
    if family == "sd2" and plain and metadata.get("global_step") != "875000":
        return "v_prediction"
    return "epsilon"


def original_state(checkpoint: Checkpoint) -> State:
    """The tensors of a checkpoint under the keys of an original single file.

    An autoencoder or a text encoder alone has no prefix, as such files are published.
    """
    family, parts, state = checkpoint.family, checkpoint.parts, {}
    alone = len(parts) == 1

    def add(prefix: str, tensors: Mapping[str, LazyTensor]) -> None:
        state.update({prefix + key: tensor for key, tensor in tensors.items()})

    for name in ("unet", "controlnet"):
        if name in parts:
            layers = parts[name].config.get("layers_per_block", 2)
            prefix = UNET if name == "unet" else CONTROL
            add(prefix, original.original_unet(parts[name].state, layers))
    if "vae" in parts:
        add("" if alone else VAE, original.original_vae(parts["vae"].state))
    first, second = (parts.get(name) for name in ("text_encoder", "text_encoder_2"))
    if first and family in ("sd2", "x4") and not alone:
        add(OPEN_CLIP, openclip.to_open_clip(first.state))
    elif first:
        prefix = CLIP if family == "sd1" else f"{FIRST}transformer."
        add("" if alone else prefix, openclip.with_prefix(first.state))
    if second:
        prefix = FIRST if family == "refiner" else SECOND
        add(f"{prefix}model.", openclip.to_open_clip(second.state))
    return state


def write_single_file(
    path: str | os.PathLike, checkpoint: Checkpoint, dtype=None, title: str | None = None
) -> None:
    """Writes a checkpoint as an original single .safetensors file with ModelSpec metadata."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SdjaxError(f"a single file is written as .safetensors, got {path.name}")
    metadata = modelspec(checkpoint, title or path.stem)
    write_safetensors(path, original_state(checkpoint), dtype, metadata)


def modelspec(checkpoint: Checkpoint, title: str) -> dict[str, str]:
    """ModelSpec 1.0.0 metadata, which interfaces read to tell what a file is."""
    architecture = _ARCHITECTURES[checkpoint.family]
    v_prediction = checkpoint.scheduler.get("prediction_type") == "v_prediction"
    unet = checkpoint.parts["unet"].config if "unet" in checkpoint.parts else {}
    variant = _VARIANTS.get(unet.get("in_channels"))
    if variant:
        architecture = f"{architecture.removesuffix('-512')}-{variant}"
    elif checkpoint.family == "sd2" and v_prediction:
        architecture = "stable-diffusion-v2-768-v"
    if len(checkpoint.parts) == 1 and not unet:
        (part,) = checkpoint.parts
        architecture += f"/{part.replace('_', '-')}"
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
    }
    if checkpoint.scheduler.get("prediction_type") in ("epsilon", "v_prediction"):
        metadata["modelspec.prediction_type"] = "v" if v_prediction else "epsilon"
    side = unet.get("sample_size")
    if isinstance(side, int) and "vae" in checkpoint.parts:
        pixels = side * 2 ** (len(checkpoint.parts["vae"].config["block_out_channels"]) - 1)
        metadata["modelspec.resolution"] = f"{pixels}x{pixels}"
    return metadata
