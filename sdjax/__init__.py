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
    "sdjax.models": ("UNetConfig", "VAEConfig", "TextEncoderConfig"),
    "sdjax.weights": ("UNet", "VAE", "TinyVAE", "TextEncoder", "ControlNet", "CLIPVision"),
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
    "checkpoints",
    "data",
    "diffusion",
    "errors",
    "evaluation",
    "memory",
    "models",
    "parallel",
    "pipeline",
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
    )
    from . import (
        checkpoints as checkpoints,
    )
    from . import (
        data as data,
    )
    from . import (
        diffusion as diffusion,
    )
    from . import (
        errors as errors,
    )
    from . import (
        evaluation as evaluation,
    )
    from . import (
        memory as memory,
    )
    from . import (
        models as models,
    )
    from . import (
        parallel as parallel,
    )
    from . import (
        pipeline as pipeline,
    )
    from . import (
        text as text,
    )
    from . import (
        training as training,
    )
    from . import (
        weights as weights,
    )
    from . import (
        windows as windows,
    )
    from .diffusion import (
        Schedule as Schedule,
    )
    from .diffusion import (
        add_noise as add_noise,
    )
    from .diffusion import (
        classifier_free_guidance as classifier_free_guidance,
    )
    from .diffusion import (
        convert_prediction as convert_prediction,
    )
    from .diffusion import (
        cosine_schedule as cosine_schedule,
    )
    from .diffusion import (
        linear_schedule as linear_schedule,
    )
    from .diffusion import (
        loss_weight as loss_weight,
    )
    from .diffusion import (
        sample as sample,
    )
    from .diffusion import (
        sampler as sampler,
    )
    from .diffusion import (
        sampler_from_config as sampler_from_config,
    )
    from .diffusion import (
        scaled_linear_schedule as scaled_linear_schedule,
    )
    from .diffusion import (
        schedule_from_betas as schedule_from_betas,
    )
    from .diffusion import (
        schedule_from_config as schedule_from_config,
    )
    from .diffusion import (
        sigmoid_schedule as sigmoid_schedule,
    )
    from .diffusion import (
        training_loss as training_loss,
    )
    from .diffusion import (
        zero_terminal_snr as zero_terminal_snr,
    )
    from .models import (
        TextEncoderConfig as TextEncoderConfig,
    )
    from .models import (
        UNetConfig as UNetConfig,
    )
    from .models import (
        VAEConfig as VAEConfig,
    )
    from .pipeline import (
        Control as Control,
    )
    from .pipeline import (
        IPAdapter as IPAdapter,
    )
    from .pipeline import (
        Preview as Preview,
    )
    from .pipeline import (
        Region as Region,
    )
    from .pipeline import (
        SafetyChecker as SafetyChecker,
    )
    from .pipeline import (
        StableDiffusion as StableDiffusion,
    )
    from .pipeline import (
        T2IAdapter as T2IAdapter,
    )
    from .text import (
        Tokenizer as Tokenizer,
    )
    from .text import (
        train_tokenizer as train_tokenizer,
    )
    from .weights import (
        VAE as VAE,
    )
    from .weights import (
        CLIPVision as CLIPVision,
    )
    from .weights import (
        ControlNet as ControlNet,
    )
    from .weights import (
        TextEncoder as TextEncoder,
    )
    from .weights import (
        TinyVAE as TinyVAE,
    )
    from .weights import (
        UNet as UNet,
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
