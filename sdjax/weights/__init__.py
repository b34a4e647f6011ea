"""Files to parameter trees and back."""

from .names import params_from_state, state_from_params
from .parts import VAE, TextEncoder, UNet

__all__ = ["UNet", "VAE", "TextEncoder", "params_from_state", "state_from_params"]
