"""Diffusion in JAX: the mathematics as functions, the networks as Flax modules, and
Stable Diffusion checkpoints in and out.

Names and the modules that hold more of them (`sdjax.diffusion`, `sdjax.parallel`, …) are imported
on first use, so that `import sdjax` is instant and a program that wants only the mathematics never
loads a tokenizer.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

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
    "sdjax.weights.quantized.rounding": ("quantize",),
    "sdjax.models": ("UNetConfig", "VAEConfig", "TextEncoderConfig"),
    "sdjax.weights": ("UNet", "VAE", "TinyVAE", "TextEncoder", "ControlNet", "CLIPVision"),
    "sdjax.molecules": ("MoleculeDiffusion",),
    "sdjax.text": ("Tokenizer", "train_tokenizer"),
    "sdjax.pipeline": (
        "StableDiffusion",
        "Control",
        "T2IAdapter",
        "IPAdapter",
        "Region",
        "Preview",
        "SafetyChecker",
    ),
}
_MODULES = (
    "absent",
    "augmentation",
    "checkpoints",
    "chips",
    "data",
    "diffusion",
    "errors",
    "evaluation",
    "export",
    "memory",
    "mirror",
    "models",
    "molecules",
    "parallel",
    "pipeline",
    "sound",
    "stores",
    "text",
    "training",
    "weights",
    "windows",
)
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["EMOJI", "SdjaxError", "__version__", *_MODULE_OF]

# A type checker reads what stands here, and nothing of it runs; tests/test_package.py holds it to
# the tables above.
if TYPE_CHECKING:
    from . import (
        absent as absent,
        augmentation as augmentation,
        checkpoints as checkpoints,
        chips as chips,
        data as data,
        diffusion as diffusion,
        errors as errors,
        evaluation as evaluation,
        export as export,
        memory as memory,
        mirror as mirror,
        models as models,
        molecules as molecules,
        parallel as parallel,
        pipeline as pipeline,
        sound as sound,
        stores as stores,
        text as text,
        training as training,
        weights as weights,
        windows as windows,
    )
    from .diffusion import (
        Schedule as Schedule,
        linear_schedule as linear_schedule,
        scaled_linear_schedule as scaled_linear_schedule,
        cosine_schedule as cosine_schedule,
        sigmoid_schedule as sigmoid_schedule,
        schedule_from_betas as schedule_from_betas,
        zero_terminal_snr as zero_terminal_snr,
        add_noise as add_noise,
        convert_prediction as convert_prediction,
        training_loss as training_loss,
        loss_weight as loss_weight,
        sampler as sampler,
        sampler_from_config as sampler_from_config,
        schedule_from_config as schedule_from_config,
        sample as sample,
        classifier_free_guidance as classifier_free_guidance,
    )
    from .models import (
        UNetConfig as UNetConfig,
        VAEConfig as VAEConfig,
        TextEncoderConfig as TextEncoderConfig,
    )
    from .weights.quantized.rounding import quantize as quantize
    from .weights import (
        UNet as UNet,
        VAE as VAE,
        TinyVAE as TinyVAE,
        TextEncoder as TextEncoder,
        ControlNet as ControlNet,
        CLIPVision as CLIPVision,
    )
    from .molecules import MoleculeDiffusion as MoleculeDiffusion
    from .text import (
        Tokenizer as Tokenizer,
        train_tokenizer as train_tokenizer,
    )
    from .pipeline import (
        StableDiffusion as StableDiffusion,
        Control as Control,
        T2IAdapter as T2IAdapter,
        IPAdapter as IPAdapter,
        Region as Region,
        Preview as Preview,
        SafetyChecker as SafetyChecker,
    )
else:

    def __getattr__(name):
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value


def __dir__():
    return sorted({*__all__, *_MODULES})
