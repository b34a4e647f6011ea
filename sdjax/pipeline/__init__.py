"""Prompts and conditions to images."""

from .control import Control
from .previews import Preview
from .regions import Region
from .safety import SafetyChecker
from .stable_diffusion import StableDiffusion

__all__ = ["Control", "Preview", "Region", "SafetyChecker", "StableDiffusion"]
