"""ModelSpec metadata (https://github.com/Stability-AI/ModelSpec): what a single file says it is."""

import datetime
from collections.abc import Mapping

from sdjax.diffusion.config import CLASSES
from sdjax.errors import SdjaxError
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.kinds import given_beside

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "refiner": "stable-diffusion-xl-v1-refiner",
    "x4": "stable-diffusion-v2-x4-upscaler",
}
_FAMILIES = {name: family for family, name in _ARCHITECTURES.items()}
# What programs write for a prediction; the first is ModelSpec's own word.
_WORDS = {
    "epsilon": ("epsilon", "eps"),
    "v_prediction": ("v", "v_prediction", "v-prediction", "v_pred", "vpred"),
    "sample": ("sample", "x0", "x_0"),
}
_PREDICTIONS = {word: prediction for prediction, words in _WORDS.items() for word in words}
# Of sd-scripts, ComfyUI's merges, and sd-scripts' own metadata.
_PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "ss_v_parameterization")
# True of the source's bytes alone, or said anew.
_STALE = ("hash_sha256", "predict_key", "prediction_type", "resolution", "unet_dtype", "vae_dtype")


def family_said(metadata: Mapping[str, str]) -> str | None:
    """The family that a file's architecture names, or None."""
    return _FAMILIES.get(metadata.get("modelspec.architecture", "").partition("/")[0])


def prediction_said(metadata: Mapping[str, str]) -> str | None:
    """The prediction type that a file's metadata name, in diffusers' words, or None.

    Raises SdjaxError for a word that is not known, and where they contradict one another.
    """
    said = {}
    for key in _PREDICTION_KEYS:
        word = metadata.get(key, "").strip().lower()
        if key.startswith("ss_"):  # "False" is what is written of everything else
            word = "v" if word == "true" else ""
        if not word or word == "none":
            continue
        if word not in _PREDICTIONS:
            raise SdjaxError(
                f"the metadata's {key} is {word!r}, expected {', '.join(w[0] for w in _WORDS.values())}"
                ": say what the network predicts by prediction_type"
            )
        said[key] = _PREDICTIONS[word]
    if len(set(said.values())) > 1:
        told = " and ".join(f"{key} {value}" for key, value in said.items())
        raise SdjaxError(
            f"the metadata contradict one another: {told}; say what the network predicts by "
            "prediction_type"
        )
    return next(iter(said.values()), None)


def prediction_of(scheduler: Mapping) -> str:
    """What a scheduler's configuration says or, where it does not, its class's own default."""
    entry = CLASSES.get(scheduler.get("_class_name"))
    default = entry.defaults.get("prediction_type", "epsilon") if entry else "epsilon"
    return scheduler.get("prediction_type") or default


def modelspec(checkpoint: Checkpoint, title: str) -> dict[str, str]:
    """ModelSpec 1.0.0 metadata, which interfaces read to tell what a file is.

    What the source's say of title, author, licence and the like stays; `title` is for one without.
    """
    architecture = _ARCHITECTURES[checkpoint.family]
    parts = checkpoint.parts
    unet = parts["unet"].config if "unet" in parts else {}
    prediction = prediction_of(checkpoint.scheduler) if unet and checkpoint.scheduler else None
    beside = given_beside(parts) if unet and checkpoint.family != "x4" else ""
    if beside and beside != "other":
        architecture = f"{architecture.removesuffix('-512')}-{beside}"
    elif checkpoint.family == "sd2" and prediction == "v_prediction":
        architecture = "stable-diffusion-v2-768-v"
    if len(parts) == 1 and not unet:
        (part,) = parts
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
    for name in _STALE:
        metadata.pop(f"modelspec.{name}", None)
    if prediction in _WORDS:
        metadata["modelspec.prediction_type"] = _WORDS[prediction][0]
    side = unet.get("sample_size")
    vae = parts["vae"].config if "vae" in parts else {}
    if isinstance(side, int) and vae.get("block_out_channels"):
        pixels = side * 2 ** (len(vae["block_out_channels"]) - 1)
        metadata["modelspec.resolution"] = f"{pixels}x{pixels}"
    return metadata
