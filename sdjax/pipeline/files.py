"""Whole models on disk: networks, tokenizers and scheduler, in any layout, both ways.

Nothing here makes an array: a model is converted from file to file one tensor at a time.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import clip_tokenizer
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.folder import (
    STEMS,
    read_folder,
    read_json,
    read_model_index,
    read_part,
    write_json,
    write_part,
)
from sdjax.weights.hub import locate
from sdjax.weights.single_file import read_single_file, write_single_file
from sdjax.weights.tensors import dtype_of

GUIDANCE_SCALE = 7.5
"""Of models that do not say what suits them."""

# The version of diffusers whose folders are written; its inpainting pipeline asks for one.
LAYOUT = "0.42.1"
# The model's own guidance in model_index.json: diffusers passes over names that begin so.
_GUIDANCE = "_guidance_scale"
# diffusers' pipeline for the U-Net's input channels, where they are not only the latent's.
_SD_PIPELINES = {
    5: "StableDiffusionDepth2ImgPipeline",
    8: "StableDiffusionInstructPix2PixPipeline",
    9: "StableDiffusionInpaintPipeline",
}
_XL_PIPELINES = {
    8: "StableDiffusionXLInstructPix2PixPipeline",
    9: "StableDiffusionXLInpaintPipeline",
}
_PARTS_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "UNet2DModel": "unet",
    "AutoencoderKL": "vae",
    "AutoencoderTiny": "vae",
    "ControlNetModel": "controlnet",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint with its tokenizers, keyed by the text encoders' parts.

    guidance_scale: what suits the model, where nobody asks for another.
    """

    checkpoint: Checkpoint
    tokenizers: Mapping[str, Tokenizer]
    zero_negative: bool = False
    guidance_scale: float = GUIDANCE_SCALE

    @property
    def is_whole(self) -> bool:
        """Whether prompts can become images with it."""
        return {"unet", "vae"} <= set(self.checkpoint.parts) and bool(self.tokenizers)


def read_model(
    source: str | os.PathLike,
    variant: str | None = None,
    revision: str | None = None,
    config: str | os.PathLike | None = None,
    prediction_type: str | None = None,
) -> Model:
    """Reads a diffusers folder, an original single file, a part alone, or a hub id.

    config: a diffusers folder whose configurations and tokenizers replace what a single file's
    shapes suggest. prediction_type: of a single file. Raises SdjaxError for anything else.
    """
    path = locate(source, variant, revision)
    if path.is_dir():
        if (path / "config.json").is_file() and not (path / "model_index.json").is_file():
            return Model(_part_alone(path, variant), {})
        checkpoint, index = read_folder(path, variant), read_model_index(path)
        zero = bool(index.get("force_zeros_for_empty_prompt"))
        return Model(checkpoint, _tokenizers(checkpoint, path), zero, _guidance_scale(index, path))
    configs = None if config is None else _configs(Path(config))
    checkpoint = read_single_file(path, configs, prediction_type)
    tokenizers = _tokenizers(checkpoint, None if config is None else Path(config))
    return Model(checkpoint, tokenizers, zero_negative=checkpoint.family == "sdxl")


def _guidance_scale(index: Mapping, folder: Path) -> float:
    value = index.get(_GUIDANCE, GUIDANCE_SCALE)
    if type(value) not in (int, float):
        raise SdjaxError(f"{_GUIDANCE} of {folder}/model_index.json must be a number, got {value!r}")
    return float(value)


def _part_alone(folder: Path, variant: str | None) -> Checkpoint:
    config = read_json(folder / "config.json")
    name = _PARTS_OF_CLASS.get(config.get("_class_name"))
    if name is None and any("CLIPText" in a for a in config.get("architectures") or ()):
        name = "text_encoder"
    if name is None:
        raise SdjaxError(
            f"{folder} holds a {config.get('_class_name')}: expected a U-Net, AutoencoderKL, "
            "ControlNet or CLIP text encoder"
        )
    return Checkpoint({name: read_part(folder, name, variant)})


def _configs(folder: Path) -> dict:
    """Configurations of a pipeline folder by part, and of its scheduler."""
    index = read_model_index(folder)
    configs = {
        name: read_json(folder / name / "config.json")
        for name in index
        if (folder / name / "config.json").is_file()
    }
    for name in ("scheduler", "low_res_scheduler"):
        if name == "scheduler" or name in index:
            configs[name] = read_json(folder / name / "scheduler_config.json")
    return configs


def _tokenizers(checkpoint: Checkpoint, folder: Path | None) -> dict[str, Tokenizer]:
    found = {}
    for part in ("text_encoder", "text_encoder_2"):
        if part not in checkpoint.parts or "unet" not in checkpoint.parts:
            continue
        home = folder / part.replace("text_encoder", "tokenizer") if folder else None
        if home is not None and home.is_dir():
            found[part] = Tokenizer.from_pretrained(home)
        elif folder is not None:
            raise SdjaxError(f"{folder} has a {part}, but no {home.name}")
        else:
            pads_with_zero = checkpoint.family in ("sd2", "x4") or part == "text_encoder_2"
            found[part] = clip_tokenizer(*(["!"] if pads_with_zero else []))
    return found


def write_model(
    model: Model, out: str | os.PathLike, dtype=None, variant: str | None = None
) -> None:
    """Writes a single file where `out` ends in .safetensors, else a diffusers folder.

    dtype: float32, float16 or bfloat16; None keeps each tensor's own.
    """
    out, checkpoint = Path(out), model.checkpoint
    if dtype is not None:
        dtype_of(dtype)
    if out.suffix in (".safetensors", ".ckpt"):
        write_single_file(out, checkpoint, dtype)
        return
    for name, part in checkpoint.parts.items():
        folder = out / name if model.is_whole else out
        stem = STEMS[1] if name.startswith("text_encoder") else STEMS[0]
        write_part(folder, part.config, part.state, dtype, stem, variant)
    if not model.is_whole:
        return
    for part, tokenizer in model.tokenizers.items():
        tokenizer.save_pretrained(out / part.replace("text_encoder", "tokenizer"))
    write_json(out / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    if checkpoint.low_res_scheduler:
        folder = out / "low_res_scheduler"
        write_json(folder / "scheduler_config.json", checkpoint.low_res_scheduler)
    write_json(out / "model_index.json", _model_index(model))


def pipeline_class(checkpoint: Checkpoint) -> str:
    """The name of the diffusers pipeline that a model of this kind runs in."""
    channels = checkpoint.parts["unet"].config.get("in_channels")
    if checkpoint.family == "refiner":
        return "StableDiffusionXLImg2ImgPipeline"
    if checkpoint.family == "sdxl":
        return _XL_PIPELINES.get(channels, "StableDiffusionXLPipeline")
    if checkpoint.family == "x4":
        return "StableDiffusionUpscalePipeline"
    return _SD_PIPELINES.get(channels, "StableDiffusionPipeline")


def _model_index(model: Model) -> dict:
    checkpoint, absent = model.checkpoint, [None, None]
    parts, name_of_class = checkpoint.parts, pipeline_class(checkpoint)
    index = {
        "_class_name": name_of_class,
        "_diffusers_version": LAYOUT,
        "scheduler": ["diffusers", checkpoint.scheduler["_class_name"]],
    }
    if model.guidance_scale != GUIDANCE_SCALE:
        index[_GUIDANCE] = model.guidance_scale
    for name, part in parts.items():
        if name in model.tokenizers:
            index[name] = ["transformers", part.config["architectures"][0]]
            index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        else:
            index[name] = ["diffusers", part.config["_class_name"]]
    if checkpoint.family in ("sdxl", "refiner"):
        index["force_zeros_for_empty_prompt"] = model.zero_negative
        for name in {"text_encoder", "text_encoder_2"} - set(parts):
            index[name] = index[name.replace("text_encoder", "tokenizer")] = absent
    elif checkpoint.family == "x4":
        index["low_res_scheduler"] = ["diffusers", checkpoint.low_res_scheduler["_class_name"]]
        return index | {"safety_checker": absent, "feature_extractor": absent}
    elif name_of_class != _SD_PIPELINES[5]:  # which has no safety checker
        index |= {"safety_checker": absent, "requires_safety_checker": False}
    return index | {"feature_extractor": absent, "image_encoder": absent}
