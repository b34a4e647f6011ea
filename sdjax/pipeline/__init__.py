"""Prompts and conditions to images."""

from .given.regions import Region
from .results.previews import Preview
from .results.safety import SafetyChecker
from .stable_diffusion import StableDiffusion
from .steering.control import Control
from .steering.ip_adapter import IPAdapter
from .steering.t2i_adapter import T2IAdapter

__all__ = [
    "Control",
    "IPAdapter",
    "Preview",
    "Region",
    "SafetyChecker",
    "StableDiffusion",
    "T2IAdapter",
]
