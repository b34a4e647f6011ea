"""Diffusers folders: a JSON configuration beside safetensors weights, one folder a part."""

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.models import clap
from sdjax.models.clip import PLAIN, PROJECTED
from sdjax.models.unet_config import CONDITION_MODEL, OWN_MODEL, PIXEL_MODEL, VIDEO_MODEL
from sdjax.models.vae import CLIPS
from sdjax.text_files import read_text
from sdjax.weights import motion_parts, openclip, original, single_file
from sdjax.weights.checkpoint import PARTS, Checkpoint, Part
from sdjax.weights.clap import clap_part, is_clap
from sdjax.weights.hifigan import vocoder_state
from sdjax.weights.names import IGNORED_SUFFIXES
from sdjax.weights.quantized.files import spread
from sdjax.weights.tensors import State, write_safetensors

# The file name of a part's weights, without variant and ending.
STEMS = ("diffusion_pytorch_model", "model")
_STEM = "(?:diffusion_pytorch_model|pytorch_model|model)"
_VARIANT = r"(?:\.((?!\S*-\d+-of-\d+)[\w-]+))?"  # a shard's number is none
# In the order in which they are preferred; the groups are the variant.
_PATTERNS = tuple(
    re.compile(f"{_STEM}{_VARIANT}{pattern}")
    for ending in (r"\.safetensors", r"\.bin")
    for pattern in (ending, rf"{ending}{_VARIANT}\.index{_VARIANT}\.json")
)
SCHEDULERS = ("scheduler", "low_res_scheduler")
# Components of diffusers' depth pipeline that nothing here runs.
DEPTH_EXTRAS = ("depth_estimator", "feature_extractor")
_PARTS_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "UNet2DModel": "unet",
    VIDEO_MODEL: "unet",
    "AutoencoderKL": "vae",
    CLIPS: "vae",
    "AutoencoderTiny": "vae",
    "ControlNetModel": "controlnet",
}
# What a model_index.json may name for a part of a pipeline.
_TEXT_CLASSES = (PLAIN, PROJECTED)
_CLASSES = {
    "unet": (CONDITION_MODEL, PIXEL_MODEL, OWN_MODEL, VIDEO_MODEL, motion_parts.MOTION_MODEL),
    "vae": ("AutoencoderKL", "AutoencoderTiny", CLIPS),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "text_encoder": (*_TEXT_CLASSES, clap.NAME, clap.WHOLE),
    "text_encoder_2": _TEXT_CLASSES,
    "controlnet": ("ControlNetModel",),
    "vocoder": ("SpeechT5HifiGan",),
    motion_parts.PART: (motion_parts.ADAPTER,),
}
# What is looked at before a configuration's network is made; null is as good as nothing.
_FIELDS = {
    "_class_name": str,
    "addition_embed_type": str,
    "architectures": list,
    "attention_head_dim": int | list,
    "block_out_channels": list,
    "cross_attention_dim": int | list,
    "force_upcast": bool,
    "hidden_act": str,
    "in_channels": int,
    "layers_per_block": int | list,
    "num_class_embeds": int,
    "prediction_type": str,
    "reverse_transformer_layers_per_block": list,
    "sample_size": int | list,
    "scaling_factor": int | float,
    "transformer_layers_per_block": int | list,
}


def read_json(path: str | os.PathLike) -> dict:
    """A JSON object from a file; SdjaxError where it is missing or not one."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SdjaxError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SdjaxError(f"{path} must hold a JSON object, found a {type(value).__name__}")
    return value


def write_json(path: str | os.PathLike, value: Mapping) -> None:
    """Writes a JSON object, making its folder; SdjaxError where that is not possible."""
    check_local(path)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise SdjaxError(f"cannot write {path}: {error.strerror}") from error


def read_model_index(folder: str | os.PathLike) -> dict:
    """model_index.json of a pipeline folder; SdjaxError where the folder is not one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SdjaxError(f"no such model folder: {folder}")
    if not (folder / "model_index.json").is_file():
        raise SdjaxError(
            f"{folder} has no model_index.json, so it is not a diffusers pipeline folder; "
            f"it holds {_listing(folder)}"
        )
    index = read_json(folder / "model_index.json")
    for name in (*PARTS, *SCHEDULERS, *DEPTH_EXTRAS):
        entry = index.get(name)
        kinds = [type(item) for item in entry] if isinstance(entry, list) else entry
        if kinds not in (None, [str, str], [type(None)] * 2):
            raise SdjaxError(
                f"{folder / 'model_index.json'}: {name} must be [library, class], got {entry!r}"
            )
    return index


def holds(index: Mapping, name: str) -> bool:
    """Whether a model_index.json names a component that is there."""
    return (index.get(name) or [None])[0] is not None


def _parts(index: Mapping) -> list[str]:
    """The parts that a pipeline's own networks are; others may hold a picture encoder for adapters.
    """
    kind = (index.get("unet") or [None] * 2)[1]
    # A U-Net may have its motion modules inside.
    other = {"image_encoder"} if kind != VIDEO_MODEL else set()
    other |= {motion_parts.PART} if kind == motion_parts.MOTION_MODEL else set()
    return [name for name in PARTS if holds(index, name) and name not in other]


def read_config(path: str | os.PathLike) -> dict:
    """A part's config.json or a scheduler's; SdjaxError where a value is of the wrong type."""
    config = read_json(path)
    _check_quantized(path, config)
    for name, kind in _FIELDS.items():
        if not (config.get(name) is None or isinstance(config[name], kind)):
            raise SdjaxError(f"{path}: {name} cannot be {config[name]!r}")
    return config


def _check_quantized(path: str | os.PathLike, config: dict) -> None:
    """Takes out what says how weights of few bits were made; SdjaxError where they are not read."""
    made = config.pop("quantization_config", None)
    method = made.get("quant_method") if isinstance(made, dict) else made
    if method not in (None, "bitsandbytes"):
        raise SdjaxError(
            f"{path}: weights quantised by {method!r} are not read; take the model wide, or of "
            "bitsandbytes"
        )


def part_alone(folder: str | os.PathLike) -> str | None:
    """Which part a folder itself is, by its config.json; None where it has none of its own."""
    folder = Path(folder)
    if (folder / "model_index.json").is_file() or not (folder / "config.json").is_file():
        return None
    config = read_config(folder / "config.json")
    if any("CLIPText" in str(name) for name in config.get("architectures") or ()):
        return "text_encoder"
    name = _PARTS_OF_CLASS.get(config.get("_class_name"))
    if name is None:
        raise SdjaxError(
            f"{folder} holds a {config.get('_class_name')}: expected a U-Net, AutoencoderKL, "
            "ControlNet or CLIP text encoder"
        )
    return name


def read_configs(folder: str | os.PathLike) -> dict[str, dict]:
    """Configurations by name: of a pipeline's parts and schedulers, or of a part alone."""
    folder = Path(folder)
    if name := part_alone(folder):
        return {name: read_config(folder / "config.json")}
    index = read_model_index(folder)
    configs = {
        name: _as_named(index, name, read_config(folder / name / "config.json"), folder)
        for name in _parts(index)
        if (folder / name / "config.json").is_file()
    }
    return configs | _read_schedulers(folder, index)


def _read_schedulers(folder: Path, index: Mapping) -> dict[str, dict]:
    return {
        name: _as_named(index, name, read_config(folder / name / "scheduler_config.json"), folder)
        for name in SCHEDULERS
        if name == "scheduler" or holds(index, name)
    }


def _as_named(index: Mapping, name: str, config: dict, folder: Path) -> dict:
    """A component's configuration, of the class in model_index.json, which wins as in diffusers."""
    if not holds(index, name):
        return config
    kind = index[name][1]
    if kind not in _CLASSES.get(name, (kind,)):
        raise SdjaxError(
            f"{folder / 'model_index.json'}: {name} must be one of {', '.join(_CLASSES[name])}, "
            f"got {kind}"
        )
    if name.startswith("text_encoder") or name == "image_encoder":
        return config | {"architectures": [kind]}
    return config | {"_class_name": kind}


def part_folder(folder: str | os.PathLike, part: str) -> Path:
    """The folder that holds a part: `folder/part`, or `folder` where it is the part itself."""
    folder = Path(folder)
    for candidate in (folder / part, folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise SdjaxError(f"no config.json in {folder} or {folder / part}: found {_listing(folder)}")


def read_weights(folder: str | os.PathLike, variant: str | None = None) -> State:
    """Describes the weights of one part's folder.

    variant: "fp16" reads `….fp16.safetensors`; None reads the plain file, and where only one
    variant is there, that one. Sharded weights are read through their index.
    Raises SdjaxError where no such weights are there, or a shard is missing.
    """
    folder = Path(folder)
    found = weight_files(folder)
    if variant is None and len(found) == 1:
        (path,) = found.values()
    elif (variant or "") in found:
        path = found[variant or ""]
    else:
        kind = f"{variant} variant of the weights" if variant else "weights (.safetensors, .bin)"
        raise SdjaxError(f"no {kind} in {folder}: found {_listing(folder)}")
    if path.suffix == ".json":
        return _read_shards(path)
    return single_file.read_file(path)[0]


def weight_files(folder: Path) -> dict[str, Path]:
    """The weight file, or shard index, of each variant in a part's folder ("" is the plain one)."""
    found = {}
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for pattern in _PATTERNS:
        for path in paths:
            match = pattern.fullmatch(path.name)
            if match:
                found.setdefault(next(filter(None, match.groups()), ""), path)
    return found


def _read_shards(index: Path) -> State:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SdjaxError(f"{index} has no weight_map")
    state: State = {}
    for name in sorted(set(map(str, weight_map.values()))):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise SdjaxError(f"{index.name} names the shard {name}, which is not in {shard.parent}")
        state.update(single_file.read_file(shard)[0])
    missing = sorted(set(weight_map) - set(state))
    if missing:
        raise SdjaxError(f"{index} promises {missing[0]}, which no shard holds: download it again")
    return state


def read_part(folder: str | os.PathLike, part: str, variant: str | None = None) -> Part:
    """One part of a pipeline folder, or the folder that is the part itself.

    Names of older versions are brought to today's, so that what is read has the manifest's keys.
    """
    home = part_folder(folder, part)
    config = read_config(home / "config.json")
    if home != Path(folder) and (Path(folder) / "model_index.json").is_file():
        config = _as_named(read_model_index(folder), part, config, Path(folder))
    state = read_weights(home, variant)
    state = {key: t for key, t in state.items() if not key.endswith(IGNORED_SUFFIXES)}
    if part == "vae":
        state = original.diffusers_vae(state)
    elif part == "vocoder":
        state = vocoder_state(state)
    elif is_clap(config):
        return clap_part(config, state)
    elif part.startswith("text_encoder"):
        projected = PROJECTED in (config.get("architectures") or ())
        state = openclip.with_prefix(state) if projected else openclip.without_prefix(state)
    return Part(config, state)


def read_folder(folder: str | os.PathLike, variant: str | None = None) -> Checkpoint:
    """The parts and the scheduler of a pipeline folder; SdjaxError where it is not one.

    variant: as of `read_weights`, for the parts that have it; a warning names those that are read
    without, as in diffusers. SdjaxError where none has it.
    """
    folder = Path(folder)
    index = read_model_index(folder)
    names = _parts(index)
    if "unet" not in names:
        raise SdjaxError(
            f"{folder} holds a {index.get('_class_name')}: expected a Stable Diffusion with a U-Net"
        )
    plain = _without_variant(folder, names, variant) if variant else []
    parts = {
        name: read_part(folder, name, None if name in plain else variant) for name in names
    }
    if parts["unet"].config.get("_class_name") == motion_parts.MOTION_MODEL:
        try:
            parts["unet"], parts[motion_parts.PART] = motion_parts.split(parts["unet"])
        except SdjaxError as error:
            raise SdjaxError(f"{folder / 'unet'}: {error}") from error
    elif motion_parts.PART in parts:
        part = parts[motion_parts.PART]
        parts[motion_parts.PART] = Part(part.config, motion_parts.without_buffers(part.state))
    return Checkpoint(parts, single_file.family_of(parts), **_read_schedulers(folder, index))


def _without_variant(folder: Path, names: list[str], variant: str) -> list[str]:
    """The parts that have plain weights only, told in a warning; SdjaxError where all are such."""
    files = {name: weight_files(folder / name) for name in names}
    plain = [name for name, found in files.items() if variant not in found and "" in found]
    having = [name for name, found in files.items() if variant in found]
    if not having:
        others = sorted({known or "plain" for found in files.values() for known in found})
        raise SdjaxError(
            f"no part of {folder} has a {variant} variant of its weights: "
            f"found {', '.join(others) or 'no weights'}"
        )
    if plain:
        warnings.warn(
            f"{folder} has the {variant} variant of {', '.join(having)} only; read without it: "
            f"{', '.join(plain)}",
            stacklevel=3,
        )
    return plain


def write_part(
    folder: str | os.PathLike,
    config: Mapping,
    state: State,
    dtype="float32",
    stem: str = STEMS[0],
    variant: str | None = None,
) -> None:
    """Writes config.json and one safetensors file, making the folder; few bits as they are."""
    folder = Path(folder)
    write_json(folder / "config.json", config)
    suffix = f".{variant}" if variant else ""
    tensors, metadata, exact = spread(state)
    write_safetensors(folder / f"{stem}{suffix}.safetensors", tensors, dtype, metadata, exact)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "nothing"
