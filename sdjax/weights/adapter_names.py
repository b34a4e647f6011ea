"""Names in adapter files: which factor of which module a key is, by whichever program wrote it.

Modules are named as in diffusers or in the original files, with points or, in sd-scripts and
LyCORIS, underscores; factors as in sd-scripts, LyCORIS, peft, ai-toolkit and old diffusers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from sdjax.weights import original, peft_config

Module = tuple[str, str]
"""A part ("unet", "text_encoder", …) and the name of one of its modules."""

_FACTORS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "magnitude": "magnitude",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "diff",
    "b_norm": "diff_b",
    "oft_blocks": "oft_blocks",
    "rescale": "rescale",
    "weight": "scaling",
    "on_input": "on_input",
    **{f"{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
}
_SUFFIXES = sorted(_FACTORS, key=len, reverse=True)
# peft's, which may be followed by the adapter's name and by "weight".
_PEFT = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_magnitude_vector": "magnitude",
    "oft_R": "oft_R",
    **{f"hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{
        f"lokr_{name}": f"k_{name}"
        for name in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")
    },
}
# Attention processors of old diffusers: `attn1.processor.to_q_lora.down.weight`.
_PROCESSOR = re.compile(r"(.*?)\.?(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight")
_TEXT_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
# Before names with underscores: sd-scripts' and OneTrainer's, and LyCORIS' own.
_FLAT = {
    "unet": ("lora_unet_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_", "lycoris_"),
    "text_encoder_2": ("lora_te2_", "lycoris_"),
}
# Before names with points: diffusers' and peft's, and ComfyUI's.
_UNET = (
    *("", "unet.", "diffusion_model.", "model.diffusion_model."),
    *(peft_config.PREFIX, f"unet.{peft_config.PREFIX}"),
)
_COMFY = {
    "text_encoder": ("clip_l.", "clip_h.", "te1."),
    "text_encoder_2": ("clip_g.", "te2."),
}
# What a file is that holds such a key, and is no adapter of these networks.
_OTHERS = (
    (r"lora_controlnet", "a Control-LoRA, a ControlNet as differences from a U-Net"),
    (r".*\.(q_layer|p_layer)\.weight", "a T-LoRA, whose strength depends on the timestep"),
    (r".*_custom_diffusion\..*", "a Custom Diffusion of diffusers"),
    (r"(ip_adapter|image_proj)\..*", "an IP-Adapter"),
    (r"lllite_.*", "a ControlNet-LLLite of sd-scripts"),
    (
        r"(.*[._])?(double_blocks|joint_blocks|single_transformer_blocks)[._].*",
        "an adapter of a transformer (Flux, SD3, …)",
    ),
    (r"emb_params|\*|string_to_param|clip_[lg]", "a learned word: use load_textual_inversion"),
    (r".*\.oft_diag", "an OFT of LyCORIS before 2.0"),
    (
        r".*\.(boft_[Rs]|oft_r|ia3_l|vera_lambda_[bd]|hra_u)(\..*)?",
        "another method of peft's (BOFT, IA3, VeRA, …)",
    ),
)


def other_kind(keys: Iterable[str]) -> str | None:
    """What a file with these keys is, where it is known to be none that is read; else None."""
    for key in keys:
        for pattern, kind in _OTHERS:
            if re.fullmatch(pattern, key):
                return kind
    return None


def module_names(
    targets: Mapping[str, Mapping[str, tuple[int, ...]]], layers: int
) -> dict[str, list[Module]]:
    """Every name that programs give to a module, to the module, or those it may stand for.

    targets: for each part its weights by state-dict key. layers: residual blocks a level.
    """
    names = defaultdict(list)
    for part, weights in targets.items():
        for module in dict.fromkeys(key.rpartition(".")[0] for key in weights if "." in key):
            spell = _unet_spellings if part == "unet" else _text_spellings
            for name in spell(part, module, weights, layers):
                names[name].append((part, module))
    return names


def sd_scripts_name(part: str, module: str, weights, layers: int, family: str) -> str:
    """What sd-scripts calls a module in its files; weights, layers: see `module_names`.

    family: the model's, of `sdjax.weights.kinds`. SDXL's U-Nets have the original blocks' names.
    """
    if part == "unet":
        sgm = family in ("sdxl", "refiner")
        name = _original(module, weights, layers) if sgm else module
        return _FLAT[part][0] + name.replace(".", "_")
    bare = module.removeprefix("text_model.")
    full = bare if bare == "text_projection" else f"text_model.{bare}"
    place = 1 if part == "text_encoder" and family == "sdxl" else 0
    return _FLAT[part][place] + full.replace(".", "_")


def _original(module: str, weights, layers: int) -> str:
    level = re.match(r"up_blocks\.(\d+)\.upsamplers", module)
    attended = level and f"up_blocks.{level[1]}.attentions.0.proj_in.weight" in weights
    return original.unet_to_original(f"{module}.", layers, bool(attended))[:-1]


def _unet_spellings(part: str, module: str, weights, layers: int) -> set[str]:
    both = (module, _original(module, weights, layers))
    flat = {prefix + name.replace(".", "_") for prefix in _FLAT[part] for name in both}
    return flat | {prefix + name for prefix in _UNET for name in both}


def _text_spellings(part: str, module: str, weights, layers: int) -> set[str]:
    bare = module.removeprefix("text_model.")
    full = bare if bare == "text_projection" else f"text_model.{bare}"
    prefixes = [f"{part}.", peft_config.PREFIX, f"{part}.{peft_config.PREFIX}"]
    for clip in _COMFY[part]:
        prefixes += (f"{start}{clip}{end}" for start in ("", "text_encoders.")
                     for end in ("", "transformer."))  # fmt: skip
    flat = {prefix + full.replace(".", "_") for prefix in _FLAT[part]}
    return flat | {prefix + name for prefix in prefixes for name in (bare, full)}


def split(key: str) -> tuple[str, str | None]:
    """The module and the factor that a key names; None for a factor that is not known."""
    if match := _PROCESSOR.fullmatch(key):
        head, which, side = match.groups()
        if "self_attn" in head:
            return f"{head}.{_TEXT_NAMES[which]}", side
        return f"{head}.to_{which}" + (".0" if which == "out" else ""), side
    parts = key.split(".")
    for i, part in enumerate(parts):
        if part in _PEFT:
            adapter = parts[i + 1 : -1] if parts[-1] == "weight" else parts[i + 1 :]
            known = len(adapter) < 2 and adapter not in (["bias"], ["scaled_oft"])
            return ".".join(parts[:i]), _PEFT[part] if known else None
    for suffix in _SUFFIXES:
        if key.endswith("." + suffix):
            return key[: -len(suffix) - 1], _FACTORS[suffix]
    return key, None


def module_of(key: str, names: Mapping[str, list[Module]]) -> str | None:
    """The longest name of a module that a key begins with."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if (name := ".".join(parts[:end])) in names:
            return name
    return None
