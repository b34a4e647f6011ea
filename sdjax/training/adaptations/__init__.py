"""What is trained on top of a checkpoint: values that a recipe holds."""

from .adaptation import Adaptation, Conditions, Networks
from .channels import Inpaint, InstructPix2Pix, with_channels
from .controlnet import ControlNet
from .full import Full
from .learned_word import LearnedWord
from .lora import LoRA
from .masks import MaskConfig, random_mask
from .motion import Motion

__all__ = [
    "Adaptation",
    "Conditions",
    "ControlNet",
    "Full",
    "Inpaint",
    "InstructPix2Pix",
    "LearnedWord",
    "LoRA",
    "MaskConfig",
    "Motion",
    "Networks",
    "random_mask",
    "with_channels",
]
