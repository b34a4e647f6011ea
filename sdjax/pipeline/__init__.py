"""Prompts and conditions to images."""

from .stable_diffusion import StableDiffusion

__all__ = ["StableDiffusion"]
