"""Original single files of Stable Diffusion (.safetensors, .ckpt), read and written.

Read are whole models (SD1, SD2, SDXL, refiner, in all their input channels) and parts alone
(U-Net, ControlNet, autoencoder, text encoder) in the original or in diffusers' names.
"""

import datetime
import os
from collections.abc import Mapping
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.weights import infer, openclip, original, taesd
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
SD2_V_SIZE = 96  # of latents: SD2 that predicts v was trained at 768 pixels

_TINY = "encoder.layers.0.weight"  # TAESD begins with a convolution

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "refiner": "stable-diffusion-xl-v1-refiner",
    "x4": "stable-diffusion-v2-x4-upscaler",
}
_FAMILIES = {name: family for family, name in _ARCHITECTURES.items()}
# By the U-Net's input channels.
_VARIANTS = {9: "inpainting", 8: "edit", 5: "depth"}


def read_file(path: str | os.PathLike) -> tuple[State, dict[str, str]]:
    """Describes the tensors of a .safetensors, .ckpt, .bin or .pt file: (state, metadata).

    The kind is told by the content, not by the name. Raises SdjaxError for anything else.
    """
    check_local(path)
    path = Path(path)
    if not path.is_file():
        raise SdjaxError(f"no such file: {path}")
    if _is_pickled(path):
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


def _is_pickled(path: Path) -> bool:
    """Whether a file is PyTorch's, by its first bytes, or by its name where they do not say."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise SdjaxError(f"cannot read {path}: {error.strerror}") from error
    if head[4:] == b"\0\0\0\0{":  # the length of a safetensors header, and its first letter
        return False
    if head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle
        return True
    return path.suffix in (".ckpt", ".bin", ".pt", ".pth")


def under(state: Mapping[str, LazyTensor], prefix: str) -> State:
    """The tensors whose key begins with a prefix, without it."""
    return {key[len(prefix) :]: t for key, t in state.items() if key.startswith(prefix)}


def read_single_file(
    path: str | os.PathLike,
    configs: Mapping[str, Mapping] | None = None,
    prediction_type: str | None = None,
) -> Checkpoint:
    """Reads an original file, or one part alone, as a `Checkpoint`.

    configs: config.json of parts and of schedulers, in place of what is inferred.
    prediction_type: "epsilon" or "v_prediction"; by default the given scheduler's, what the file's
        metadata say, or the published models': v for SD2 from text alone, epsilon for all others.
    Raises SdjaxError where the file is not a Stable Diffusion checkpoint.
    """
    state, metadata = read_file(path)
    given = configs or {}
    said = metadata.get("modelspec.architecture", "").partition("/")[0]
    if taesd.is_half(state):
        state = taesd.both_halves(Path(path), state, lambda sibling: read_file(sibling)[0])
    try:
        states = split_parts(state)
        parts = configured(states, given, _FAMILIES.get(said, "sd1"))
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, SdjaxError):
            raise SdjaxError(f"{path}: {error}") from error
        raise SdjaxError(f"{path} is not a whole checkpoint: {error} is missing") from error
    if not parts:
        raise SdjaxError(
            f"{path} is not a Stable Diffusion checkpoint: no U-Net, ControlNet, autoencoder or "
            f"text encoder was found among its {len(state)} tensors "
            f"({', '.join(sorted(state)[:3])}, …)"
        )
    family = family_of(parts)
    prediction = prediction_type or _prediction(family, parts, state, metadata)
    scheduler = given.get("scheduler") or infer.scheduler_config(family, prediction)
    if prediction_type:
        scheduler = {**scheduler, "prediction_type": prediction_type}
    unet = parts.get("unet")
    if family == "sd2" and unet and prediction == "v_prediction" and "unet" not in given:
        parts["unet"] = Part({**unet.config, "sample_size": SD2_V_SIZE}, unet.state)
    low_res = infer.low_res_scheduler_config() if family == "x4" else {}
    low_res = given.get("low_res_scheduler", low_res)
    return Checkpoint(parts, family, scheduler, low_res, metadata)


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


def configured(
    states: Mapping[str, State], given: Mapping[str, Mapping], family: str = "sd1"
) -> dict[str, Part]:
    """Parts with their configurations, given or inferred; family: of an autoencoder alone."""
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
        if family == "sdxl" and "text_encoder_2" in parts and "text_encoder" not in parts:
            return "refiner"
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
    plain = "unet" in parts and parts["unet"].config.get("in_channels") == 4
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
            layers = parts[name].config.get("layers_per_block") or 2
            if not isinstance(layers, int):
                raise SdjaxError(
                    "a single file has the same layers_per_block at every level, this "
                    f"{name} has {layers}: write a folder"
                )
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


def write_single_file(path: str | os.PathLike, checkpoint: Checkpoint, dtype=None) -> None:
    """Writes a checkpoint as an original single .safetensors file with ModelSpec metadata."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SdjaxError(f"a single file is written as .safetensors, got {path.name}")
    metadata = modelspec(checkpoint, path.stem)
    write_safetensors(path, original_state(checkpoint), dtype, metadata)


def modelspec(checkpoint: Checkpoint, title: str) -> dict[str, str]:
    """ModelSpec 1.0.0 metadata, which interfaces read to tell what a file is.

    What the source's say of title, author, licence and the like stays; `title` is for one without.
    """
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
    today = datetime.datetime.now(datetime.UTC).date()
    metadata = {
        "modelspec.title": title,
        "modelspec.date": today.isoformat(),
        **{key: t for key, t in checkpoint.metadata.items() if key.startswith("modelspec.")},
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    }
    metadata.pop("modelspec.hash_sha256", None)  # of the source's own bytes
    if checkpoint.scheduler.get("prediction_type") in ("epsilon", "v_prediction"):
        metadata["modelspec.prediction_type"] = "v" if v_prediction else "epsilon"
    side = unet.get("sample_size")
    vae = checkpoint.parts["vae"].config if "vae" in checkpoint.parts else {}
    if isinstance(side, int) and vae.get("block_out_channels"):
        pixels = side * 2 ** (len(vae["block_out_channels"]) - 1)
        metadata["modelspec.resolution"] = f"{pixels}x{pixels}"
    return metadata
