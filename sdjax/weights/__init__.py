"""Files to parameter trees and back."""

from .names import params_from_state, state_from_params
from .parts import VAE, ControlNet, TextEncoder, TinyVAE, UNet

__all__ = [
    "ControlNet",
    "TextEncoder",
    "TinyVAE",
    "UNet",
    "VAE",
    "params_from_state",
    "state_from_params",
]
