"""More pictures of what is known: variations of labelled pictures by a diffusion model."""

from .synthetic import Augmentation, augment

__all__ = ["Augmentation", "augment"]
