"""Files of a trained LoRA: one as sd-scripts writes it, and folders as peft does."""

import hashlib
import json
from pathlib import Path

import numpy as np

from sdjax.weights.adapter_names import sd_scripts_name
from sdjax.weights.adapters import weight_shapes
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import write_json
from sdjax.weights.kinds import family_of
from sdjax.weights.names import state_from_params
from sdjax.weights.peft_config import PREFIX
from sdjax.weights.tensors import lazy, write_safetensors

_BASES = {
    "sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "refiner": "sdxl_refiner_v1-0",
}
_PEFT_FACTORS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def write_sd_scripts(path: Path, adaptation, tree, model, dtype, about) -> None:
    """A LoRA as `lora.safetensors` of sd-scripts: its keys, and the metadata that programs read.

    about: further metadata, keys with ss_.
    """
    family, shapes = family_of(_parts(model)), weight_shapes(model.params)
    layers = model.unet.config.per_level("layers_per_block")[0]
    state = {}
    for part, own in tree.items():
        weights = shapes[part]
        for key, tensor in state_from_params(own).items():
            module, factor = _split(key)
            name = sd_scripts_name(part, module, weights, layers, family)
            if factor == "magnitude":
                # LyCORIS' and ComfyUI's name for it; its further axes say that it is of outputs.
                shape = (*tensor.shape, *(1,) * (len(weights[f"{module}.weight"]) - 1))
                state[f"{name}.dora_scale"] = tensor.map(shape, lambda x, s=shape: x.reshape(s))
                continue
            state[f"{name}.{factor}"] = tensor
            if factor == "lora_down.weight":
                kernel = weights[f"{module}.weight"]
                _, alpha = adaptation.rank_and_alpha((*kernel[2:], kernel[1], kernel[0]))
                state[f"{name}.alpha"] = lazy(np.array(alpha, np.float32))
    metadata = _metadata(adaptation, family, model, about)
    write_safetensors(path, state, dtype, metadata)
    write_safetensors(path, state, dtype, metadata | _hashes(path))


def write_peft(folder: Path, adaptation, tree, dtype) -> None:
    """A LoRA as peft saves it: in `folder` one for each part, which PeftModel reads.

    And all parts in diffusers' own file beside them: of sd-scripts' file diffusers leaves out what
    makes it a DoRA.
    """
    together, settings = {}, {}
    for part, own in tree.items():
        state, ranks, alphas, modules = {}, {}, {}, []
        factors = state_from_params(own)
        for key, tensor in factors.items():
            module, factor = _split(key)
            if factor == "magnitude":
                if len(factors[f"{module}.lora_down.weight"].shape) == 4:
                    tensor = tensor.map((1, *tensor.shape, 1, 1), lambda x: x.reshape(1, -1, 1, 1))
                state[f"{PREFIX}{module}.lora_magnitude_vector"] = tensor
                continue
            state[f"{PREFIX}{module}.{_PEFT_FACTORS[factor]}"] = tensor
            if factor == "lora_down.weight":
                modules.append(module)
                down = tensor.shape
                rank, alpha = adaptation.rank_and_alpha((*down[2:], down[1], down[0]))
                if (rank, alpha) != (adaptation.rank, adaptation.alpha):
                    ranks[module], alphas[module] = rank, alpha
        place = folder / part
        place.mkdir(parents=True, exist_ok=True)
        write_safetensors(place / "adapter_model.safetensors", state, dtype)
        config = {
            "peft_type": "LORA", "r": adaptation.rank, "lora_alpha": adaptation.alpha,
            "target_modules": modules, "rank_pattern": ranks, "alpha_pattern": alphas,
            "use_dora": adaptation.dora, "use_rslora": False, "lora_dropout": 0.0, "bias": "none",
            "init_lora_weights": True,
        }  # fmt: skip
        more = {"inference_mode": True, "task_type": None}
        write_json(place / "adapter_config.json", config | more)
        together |= {key.replace(PREFIX, f"{part}.", 1): value for key, value in state.items()}
        settings |= {f"{part}.{name}": value for name, value in config.items()}
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    write_safetensors(folder / "pytorch_lora_weights.safetensors", together, dtype, metadata)


def _parts(model):
    """The configurations of a pipeline's networks, as parts without weights."""
    networks = dict(zip(model.encoder_parts, model.text_encoders, strict=True))
    networks |= {"unet": model.unet, "vae": model.vae}
    return {name: Part(network.config.to_dict(), {}) for name, network in networks.items()}


def _split(key):
    """(module, factor) of a key of the tree."""
    for factor in (*_PEFT_FACTORS, "magnitude"):
        if key.endswith(f".{factor}"):
            return key.removesuffix(f".{factor}"), factor
    raise ValueError(key)


def _metadata(adaptation, family, model, about):
    convolutions = {}
    if adaptation.conv_rank:
        convolutions = {"conv_dim": adaptation.conv_rank, "conv_alpha": adaptation.conv_alpha}
    if adaptation.rank_dropout:
        convolutions["rank_dropout"] = adaptation.rank_dropout
    network = {name: str(value) for name, value in convolutions.items()}
    prediction = model.scheduler_config.get("prediction_type", "epsilon")
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adaptation.rank),
        "ss_network_alpha": str(adaptation.alpha),
        "ss_network_args": json.dumps(network),
        "ss_base_model_version": _BASES.get(family, family),
        "ss_v2": str(family == "sd2"),
        "ss_v_parameterization": str(prediction == "v_prediction"),
        **about,
    }


def _hashes(path):
    """What A1111 knows a network by: of its tensors, and of a piece of the file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }
