"""Files to parameter trees and back."""

from .clip_vision import CLIPVision
from .names import params_from_state, state_from_params
from .parts import VAE, ControlNet, TextEncoder, TinyVAE, UNet

__all__ = [
    "CLIPVision",
    "ControlNet",
    "TextEncoder",
    "TinyVAE",
    "UNet",
    "VAE",
    "params_from_state",
    "state_from_params",
]
