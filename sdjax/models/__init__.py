"""Networks as Flax Linen modules: they know nothing of files, schedules or training."""

from .clip import TextEncoder, TextEncoderConfig, TextOutput
from .unet import UNet
from .unet_config import UNetConfig
from .vae import VAE, VAEConfig

__all__ = [
    "TextEncoder",
    "TextEncoderConfig",
    "TextOutput",
    "UNet",
    "UNetConfig",
    "VAE",
    "VAEConfig",
]
