"""Whole models on disk: networks, tokenizers and scheduler, in any layout, both ways.

Nothing here makes an array: a model is converted from file to file one tensor at a time.
"""

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.pipeline.model.captions import CAPTIONS, read_captions
from sdjax.text.roberta import RobertaTokenizer
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import clip_tokenizer
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.clap import is_clap
from sdjax.weights.folder import (
    DEPTH_EXTRAS,
    STEMS,
    holds,
    part_alone,
    read_configs,
    read_folder,
    read_model_index,
    read_part,
    write_json,
    write_part,
)
from sdjax.weights.hifigan import theirs
from sdjax.weights.hub import locate
from sdjax.weights.kinds import family_of, given_beside
from sdjax.weights.layout import original_state
from sdjax.weights.markers import own_metadata
from sdjax.weights.quantized.gguf_files import WRITTEN, write_gguf
from sdjax.weights.quantized.states import check_format, narrowed
from sdjax.weights.single_file import read_single_file, write_single_file
from sdjax.weights.tensors import dtype_of

GUIDANCE_SCALE = 7.5
"""Of models that do not say what suits them."""
CLIP_GUIDANCE_SCALE = 3.0
"""The same of models that move a picture: of the last frame."""

# The version of diffusers whose folders are written; its inpainting pipeline asks for one.
LAYOUT = "0.42.1"
# The model's own guidance in model_index.json: diffusers passes over names that begin so.
_GUIDANCE = "_guidance_scale"
_ZEROS, _SCORE = "force_zeros_for_empty_prompt", "requires_aesthetics_score"
# What a single file of ours keeps of the model index.
_INDEX = "sdjax.model_index"
_DEPTH = "StableDiffusionDepth2ImgPipeline"
# diffusers' pipeline for what a U-Net is given beside the latents.
_SD_PIPELINES = {
    "": "StableDiffusionPipeline",
    "depth": _DEPTH,
    "edit": "StableDiffusionInstructPix2PixPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
}
_XL_PIPELINES = {
    "": "StableDiffusionXLPipeline",
    "edit": "StableDiffusionXLInstructPix2PixPipeline",
    "inpainting": "StableDiffusionXLInpaintPipeline",
}
SOUND = "sound"
"""The family of models that make sound."""
_SOUND_PIPELINE = "AudioLDMPipeline"
# What diffusers' pipelines of sound take where nobody asks for another.
_GUIDANCES = {_SOUND_PIPELINE: 2.5, "MusicLDMPipeline": 2.0}
_MOVING = {"sd1": "AnimateDiffPipeline", "sdxl": "AnimateDiffSDXLPipeline"}
# SDXL's that may be told how beautiful the picture is.
_SCORED = ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
_OF_TRANSFORMERS = ("text_encoder", "text_encoder_2", "vocoder", "image_encoder")
# Of parts whose configuration does not say.
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "controlnet": "ControlNetModel",
            "motion_adapter": "MotionAdapter"}  # fmt: skip

# Of CLIP's pictures; as diffusers' pipeline calls it, it only takes the mean and divides.
_PREPROCESSOR = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": 224},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint with its tokenizers, keyed by the text encoders' parts.

    zero_negative: whether no negative prompt means an embedding of zeros.
    guidance_scale: what suits the model, where nobody asks for another.
    aesthetics: whether the refiner is told a score.
    home: the diffusers folder it was read from, or took its configurations from.
    captions: all that it was trained on, where they were kept; CAPTIONS of a folder, one a line.
    """

    checkpoint: Checkpoint
    tokenizers: Mapping[str, Tokenizer | RobertaTokenizer]
    zero_negative: bool = False
    guidance_scale: float = GUIDANCE_SCALE
    aesthetics: bool = False
    home: Path | None = None
    captions: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether prompts can become images with it."""
        family = self.checkpoint.family
        if family == "svd":
            return {"unet", "vae", "image_encoder"} <= set(self.checkpoint.parts)
        both = {"text_encoder", "text_encoder_2"} if family == "sdxl" else set()
        encoders = both or {"text_encoder_2" if family == "refiner" else "text_encoder"}
        encoders |= {"vocoder"} if family == SOUND else set()
        return {"unet", "vae"} | encoders <= set(self.checkpoint.parts) and bool(self.tokenizers)


def read_model(
    source: str | os.PathLike,
    variant: str | None = None,
    revision: str | None = None,
    config: str | os.PathLike | None = None,
    prediction_type: str | None = None,
) -> Model:
    """Reads a diffusers folder, an original single file, a part alone, or a hub id.

    config: a diffusers folder, of a model or of a part, whose configurations and tokenizers replace
    what a single file's shapes suggest. prediction_type: of a single file, in place of what it or
    `config` says. Raises SdjaxError for anything else.
    """
    path = locate(source, variant, revision)
    if path.is_dir():
        if config is not None or prediction_type is not None:
            raise SdjaxError(
                f"config and prediction_type are for single files; {path} is a folder with its own"
            )
        if name := part_alone(path):
            parts = {name: read_part(path, name, variant)}
            return Model(Checkpoint(parts, family_of(parts)), {})
        checkpoint, home = read_folder(path, variant), path
    else:
        configs = None if config is None else read_configs(config)
        if config is None:
            _tell_of_yaml(path)
        checkpoint = read_single_file(path, configs, prediction_type)
        home = None if config is None or part_alone(config) else Path(config)
    tokenizers, family = _tokenizers(checkpoint, home), checkpoint.family
    captions = () if home is None else read_captions(home)
    if home is None:  # what the file says, else as the published models have it
        index, where = own_metadata(checkpoint.metadata, _INDEX), path
        zero = index.get(_ZEROS, family == "sdxl")
        aesthetics = bool(index.get(_SCORE, family == "refiner"))
    else:
        index, where = read_model_index(home), home
        # Where an index does not say, diffusers' own default.
        zero = index.get(_ZEROS, family in ("sdxl", "refiner"))
        aesthetics = bool(index.get(_SCORE))
    guidance_scale = _guidance_scale(index, where, family)
    return Model(checkpoint, tokenizers, bool(zero), guidance_scale, aesthetics, home, captions)


def _tell_of_yaml(path: Path) -> None:
    """A warning where CompVis' configuration lies beside a single file: other programs follow it.
    """
    for ending in (".yaml", ".yml"):
        if (beside := path.with_suffix(ending)).is_file():
            warnings.warn(
                f"{beside} is not read: networks and sampling are told from {path.name} itself; "
                'where the two differ give prediction_type="v_prediction", or config=, a diffusers '
                "folder of this kind of model",
                stacklevel=3,
            )


def _guidance_scale(index: Mapping, source: Path, family: str) -> float:
    default = CLIP_GUIDANCE_SCALE if family == "svd" else GUIDANCE_SCALE
    value = index.get(_GUIDANCE, _GUIDANCES.get(str(index.get("_class_name")), default))
    if type(value) not in (int, float):
        raise SdjaxError(
            f"{_GUIDANCE} in the model index of {source} must be a number, got {value!r}"
        )
    return float(value)


def _tokenizers(
    checkpoint: Checkpoint, folder: Path | None
) -> dict[str, Tokenizer | RobertaTokenizer]:
    found = {}
    for part in ("text_encoder", "text_encoder_2"):
        if part not in checkpoint.parts or "unet" not in checkpoint.parts:
            continue
        home = folder / part.replace("text_encoder", "tokenizer") if folder else None
        if home is not None and home.is_dir():
            reads = RobertaTokenizer if is_clap(checkpoint.parts[part].config) else Tokenizer
            found[part] = reads.from_pretrained(home)
        elif folder is not None:
            raise SdjaxError(f"{folder} has a {part}, but no {home.name}")
        else:
            pads_with_zero = checkpoint.family in ("sd2", "x4") or part == "text_encoder_2"
            found[part] = clip_tokenizer(*(["!"] if pads_with_zero else []))
    return found


def write_model(
    model: Model, out: str | os.PathLike, dtype=None, variant: str | None = None,
    quantize: str | None = None,
) -> None:  # fmt: skip
    """Writes a single file where `out` ends in .safetensors or .gguf, else a diffusers folder.

    dtype: float32, float16 or bfloat16; None keeps each tensor's own. quantize: a format of
    `sdjax.weights.quantized.states.FORMATS`; a folder keeps few bits as they are without it.
    """
    check_local(out)
    out, checkpoint = Path(out), model.checkpoint
    check_format(quantize, out)
    if dtype is not None:
        dtype_of(dtype)
    if out.suffix in (".safetensors", ".ckpt", ".gguf"):
        if checkpoint.family == SOUND:
            raise SdjaxError(f"a model of sound is written as a folder, {out} names a file")
        if out.suffix == ".gguf":
            state = original_state(checkpoint)
            write_gguf(out, state, checkpoint.family, quantize or WRITTEN[0])
            return
        metadata = _own_metadata(model)
        write_single_file(out, checkpoint, dtype, metadata, fp8=quantize is not None)
        return
    if quantize is not None:
        checkpoint = narrowed(checkpoint, quantize)
    index = _model_index(model) if model.is_whole else {}  # refused before anything is written
    for name, part in checkpoint.parts.items():
        folder = out / name if len(checkpoint.parts) > 1 else out
        stem = STEMS[1] if name in _OF_TRANSFORMERS else STEMS[0]
        state = theirs(part.state) if name == "vocoder" else part.state
        write_part(folder, part.config, state, dtype, stem, variant)
    if not model.is_whole:
        return
    for part, tokenizer in model.tokenizers.items():
        tokenizer.save_pretrained(out / part.replace("text_encoder", "tokenizer"))
    write_json(out / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    if checkpoint.family == "svd":
        write_json(out / "feature_extractor" / "preprocessor_config.json", _PREPROCESSOR)
    if checkpoint.low_res_scheduler:
        folder = out / "low_res_scheduler"
        write_json(folder / "scheduler_config.json", checkpoint.low_res_scheduler)
    if model.captions:
        (out / CAPTIONS).write_text("\n".join(model.captions) + "\n", encoding="utf-8")
    write_json(out / "model_index.json", index | _copied_extras(model, out))


def _own_metadata(model: Model) -> dict[str, str]:
    """What stands in the model index of a folder, for a single file to keep."""
    if not model.tokenizers:
        return {}
    values = {_GUIDANCE: model.guidance_scale, _ZEROS: model.zero_negative, _SCORE: model.aesthetics}
    return {_INDEX: json.dumps(values)}


def pipeline_class(checkpoint: Checkpoint) -> str:
    """The name of the diffusers pipeline that a model of this kind runs in.

    Raises SdjaxError where there is none, because of what its U-Net is given.
    """
    if checkpoint.family == "refiner":
        return "StableDiffusionXLImg2ImgPipeline"
    if checkpoint.family == SOUND:
        return _SOUND_PIPELINE
    if checkpoint.family == "x4":
        return "StableDiffusionUpscalePipeline"
    if checkpoint.family == "svd":
        return "StableVideoDiffusionPipeline"
    if "motion_adapter" in checkpoint.parts and checkpoint.family in _MOVING:
        return _MOVING[checkpoint.family]
    beside = given_beside(checkpoint.parts)
    pipelines = _XL_PIPELINES if checkpoint.family == "sdxl" else _SD_PIPELINES
    if beside not in pipelines:
        taken = checkpoint.parts["unet"].config.get("in_channels")
        raise SdjaxError(
            f"diffusers has no pipeline for a U-Net of this kind ({checkpoint.family}) that takes "
            f"{taken} channels: expected the autoencoder's latent channels alone, or with those of "
            "a mask and an image, of an image, or of a depth map"
        )
    return pipelines[beside]


def _copied_extras(model: Model, out: Path) -> dict[str, list[str | None]]:
    """The other components of diffusers' depth pipeline, copied: [library, class] by name.

    They come from the model's home; a warning says so where they do not lie there.
    """
    if pipeline_class(model.checkpoint) != _DEPTH:
        return {}
    index = read_model_index(model.home) if model.home else {}
    absent = [n for n in DEPTH_EXTRAS if not (holds(index, n) and (model.home / n).is_dir())]
    if absent:
        warnings.warn(
            f"there is no {' and no '.join(absent)}, for which diffusers' {_DEPTH} asks: "
            "give them to its from_pretrained",
            stacklevel=3,
        )
        return dict.fromkeys(DEPTH_EXTRAS, [None, None])
    extras = {}
    for name in DEPTH_EXTRAS:
        try:
            shutil.copytree(model.home / name, out / name, dirs_exist_ok=True)
        except OSError as error:
            raise SdjaxError(f"cannot copy {model.home / name} to {out}: {error}") from error
        library, kind = index[name]
        # transformers 5 has no class of the name that the published model gives.
        extras[name] = [library, kind.replace("FeatureExtractor", "ImageProcessor")]
    return extras


def _scheduler_class(config: Mapping) -> list[str]:
    if not config.get("_class_name"):
        raise SdjaxError("the scheduler's configuration has no _class_name, which folders need")
    return ["diffusers", config["_class_name"]]


def _model_index(model: Model) -> dict:
    checkpoint, absent = model.checkpoint, [None, None]
    parts, name_of_class = checkpoint.parts, pipeline_class(checkpoint)
    index = {
        "_class_name": name_of_class,
        "_diffusers_version": LAYOUT,
        "scheduler": _scheduler_class(checkpoint.scheduler),
    }
    own = CLIP_GUIDANCE_SCALE if checkpoint.family == "svd" else GUIDANCE_SCALE
    if model.guidance_scale != own:
        index[_GUIDANCE] = model.guidance_scale
    for name, part in parts.items():
        if name == "vocoder":
            index[name] = ["transformers", "SpeechT5HifiGan"]
        elif is_clap(part.config):
            index[name] = ["transformers", part.config["architectures"][0]]
            index["tokenizer"] = ["transformers", "RobertaTokenizer"]
        elif name in model.tokenizers:
            projection = "WithProjection" if "text_projection.weight" in part.state else ""
            index[name] = ["transformers", f"CLIPTextModel{projection}"]
            index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        elif name == "image_encoder":
            index[name] = ["transformers", "CLIPVisionModelWithProjection"]
        else:
            index[name] = ["diffusers", part.config.get("_class_name") or _CLASSES[name]]
    if checkpoint.family == "svd":
        return index | {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    if checkpoint.family in ("sdxl", "refiner"):
        index[_ZEROS] = model.zero_negative
        if name_of_class == _XL_PIPELINES["edit"]:  # CosXL scales the picture's latents too
            index["is_cosxl_edit"] = checkpoint.scheduler["_class_name"].startswith("EDM")
        if name_of_class in _SCORED:
            index[_SCORE] = model.aesthetics
        for name in {"text_encoder", "text_encoder_2"} - set(parts):
            index[name] = index[name.replace("text_encoder", "tokenizer")] = absent
    elif checkpoint.family == "x4":
        index["low_res_scheduler"] = _scheduler_class(checkpoint.low_res_scheduler)
        return index | {"safety_checker": absent, "feature_extractor": absent}
    elif name_of_class in (_DEPTH, _SOUND_PIPELINE):
        return index
    elif name_of_class in _MOVING.values():
        pass
    else:
        index |= {"safety_checker": absent, "requires_safety_checker": False}
    return index | {"feature_extractor": absent, "image_encoder": absent}
