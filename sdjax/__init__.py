"""Diffusion in JAX: the mathematics as functions, the networks as Flax modules, and
Stable Diffusion checkpoints in and out.

Names are imported on first use, so that `import sdjax` is instant and a program that wants only
the mathematics never loads a tokenizer.
"""

import importlib
from pathlib import Path

from .errors import SdjaxError
from .version import __version__

EMOJI = Path(__file__).parent / "assets" / "emoji"
"""The model that comes with the project, for `StableDiffusion.from_pretrained`."""

_HOME = {
    "sdjax.diffusion": (
        "Schedule",
        "linear_schedule",
        "scaled_linear_schedule",
        "cosine_schedule",
        "sigmoid_schedule",
        "schedule_from_betas",
        "zero_terminal_snr",
        "add_noise",
        "convert_prediction",
        "training_loss",
        "loss_weight",
        "sampler",
        "sampler_from_config",
        "schedule_from_config",
        "sample",
        "classifier_free_guidance",
    ),
    "sdjax.models": ("UNetConfig", "VAEConfig", "TextEncoderConfig"),
    "sdjax.weights": ("UNet", "VAE", "TinyVAE", "TextEncoder", "ControlNet"),
    "sdjax.text": ("Tokenizer", "train_tokenizer"),
    "sdjax.pipeline": ("StableDiffusion",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["EMOJI", "SdjaxError", "__version__", *_MODULE_OF]


def __getattr__(name):
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
