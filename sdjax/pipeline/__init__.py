"""Prompts and conditions to images."""

from .control import Control
from .ip_adapter import IPAdapter
from .previews import Preview
from .regions import Region
from .safety import SafetyChecker
from .stable_diffusion import StableDiffusion
from .t2i_adapter import T2IAdapter

__all__ = [
    "Control",
    "IPAdapter",
    "Preview",
    "Region",
    "SafetyChecker",
    "StableDiffusion",
    "T2IAdapter",
]
