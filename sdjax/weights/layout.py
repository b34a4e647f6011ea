"""Where the parts of a model lie in an original single file, and under which keys, both ways."""

from collections.abc import Mapping

from sdjax.errors import SdjaxError
from sdjax.weights import infer, openclip, original, vision_names
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.tensors import LazyTensor, State

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CONTROL = "control_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
FIRST = "conditioner.embedders.0."
SECOND = "conditioner.embedders.1."
VISION = f"{FIRST}open_clip.model."  # of Stable Video Diffusion
# SD2 takes the state before the last layer: its last layer is not part of the model.
SD2_LAYERS = 24

TINY = "encoder.layers.0.weight"  # TAESD begins with a convolution


def under(state: Mapping[str, LazyTensor], prefix: str) -> State:
    """The tensors whose key begins with a prefix, without it."""
    return {key[len(prefix) :]: t for key, t in state.items() if key.startswith(prefix)}


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
    first = _text(state, CLIP, OPEN_CLIP)
    if not first:
        refiner = _is_refiner(state, parts.get("unet"))
        first = _text(state, f"{FIRST}transformer.", f"{FIRST}model.", projected=refiner)
        if refiner:
            parts["text_encoder_2"], first = first, {}
    if first:
        parts["text_encoder"] = first
    if second := _text(state, f"{SECOND}transformer.", f"{SECOND}model.", projected=True):
        parts["text_encoder_2"] = second
    if vision := vision_names.vision_state(under(state, VISION)):
        parts["image_encoder"] = vision_names.prefixed(vision)
    return parts or _part_alone(state)


def _is_refiner(state: Mapping[str, LazyTensor], unet: State | None) -> bool:
    """Whether the first text encoder of a file is SDXL's second, which the refiner has alone.

    SD2 in the layout of SDXL's files has its own there, and a U-Net without added embeddings.
    """
    if f"{FIRST}model.ln_final.weight" not in state:
        return False
    return unet is None or "add_embedding.linear_1.weight" in unet


def _part_alone(state: Mapping[str, LazyTensor]) -> dict[str, State]:
    """The one part that a file without prefixes holds, or nothing."""
    if "input_blocks.0.0.weight" in state or "down_blocks.0.resnets.0.conv1.weight" in state:
        control = any("controlnet" in key or key.startswith("zero_convs.") for key in state)
        return {"controlnet" if control else "unet": original.diffusers_unet(state)}
    if "encoder.conv_in.weight" in state and "decoder.conv_in.weight" in state:
        return {"vae": _vae(state)}
    if TINY in state:
        return {"vae": dict(state)}
    text = _text(state, "", "", projected=True)
    return {"text_encoder": text} if text else {}


def second_alone(
    states: Mapping[str, State], given: Mapping[str, Mapping], metadata: Mapping[str, str]
) -> bool:
    """Whether the one text encoder of a file is SDXL's second.

    By ModelSpec, by the published one's width, or because it fits only that of the given two.
    """
    if set(states) != {"text_encoder"} or openclip.PROJECTION not in states["text_encoder"]:
        return False
    if metadata.get("modelspec.architecture", "").endswith("/text-encoder-2"):
        return True
    width = states["text_encoder"]["embeddings.token_embedding.weight"].shape[1]
    fits = {name for name, config in given.items() if config.get("hidden_size") == width}
    return fits == {"text_encoder_2"} or (not fits and width == infer.SECOND_WIDTH)


def _vae(state: Mapping[str, LazyTensor]) -> State:
    """An autoencoder without the losses and averages that its own training files carry."""
    kept = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    return original.diffusers_vae({k: t for k, t in state.items() if k.startswith(kept)})


def _text(
    state: Mapping[str, LazyTensor], prefix: str, open_prefix: str, projected: bool = False
) -> State:
    """A text encoder under transformers' names without prefix, or nothing.

    projected: whether it has a projection in its model. Other programs write CLIP's even where
    nothing uses it: SD1's, SD2's and SDXL's first encoder have none, which is then left out.
    """
    plain = openclip.without_prefix(under(state, prefix))
    if "embeddings.token_embedding.weight" in plain:
        kept = ("embeddings.", "encoder.", "final_layer_norm.")
        kept += (openclip.PROJECTION,) if projected else ()
        return {
            k: t
            for k, t in plain.items()
            if k.startswith(kept) and not k.endswith("position_ids")
        }
    fused = under(state, open_prefix)
    if "transformer.resblocks.0.ln_1.weight" not in fused:
        return {}
    layers = infer.count(fused, r"transformer\.resblocks\.(\d+)\.")
    if projected:
        return openclip.from_open_clip(fused, layers)
    # A file written from diffusers has no projection and the last layer already gone.
    whole = any(key.startswith("text_projection") for key in fused) or layers == SD2_LAYERS
    text = openclip.from_open_clip(fused, layers - whole)
    text.pop(openclip.PROJECTION, None)
    return text


def original_state(checkpoint: Checkpoint) -> State:
    """The tensors of a checkpoint under the keys of an original single file.

    An autoencoder or a text encoder alone has no prefix, as such files are published.
    """
    family, parts, state = checkpoint.family, checkpoint.parts, {}
    if family == "svd":
        raise SdjaxError("Stable Video Diffusion is not written as a single file: write a folder")
    if "motion_adapter" in parts:
        raise SdjaxError("a single file has no place for motion modules: write a folder")
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
    if second and alone:
        add("", openclip.with_prefix(second.state))
    elif second:
        prefix = FIRST if family == "refiner" else SECOND
        add(f"{prefix}model.", openclip.to_open_clip(second.state))
    return state
