"""Prompts and conditions to images."""

from .control import Control
from .stable_diffusion import StableDiffusion

__all__ = ["Control", "StableDiffusion"]
