"""Networks as Flax Linen modules: they know nothing of files, schedules or training."""

from .clip import TextEncoder, TextEncoderConfig, TextOutput
from .clip_vision import CLIPVision, CLIPVisionConfig, VisionOutput
from .controlnet import ControlNet, ControlNetConfig
from .egnn import EGNN, EGNNConfig
from .t2i_adapter import T2IAdapter, T2IAdapterConfig
from .tiny_vae import TinyVAE, TinyVAEConfig
from .unet import UNet
from .unet_config import UNetConfig
from .vae import VAE, VAEConfig

__all__ = [
    "CLIPVision",
    "CLIPVisionConfig",
    "ControlNet",
    "ControlNetConfig",
    "EGNN",
    "EGNNConfig",
    "T2IAdapter",
    "T2IAdapterConfig",
    "TextEncoder",
    "TextEncoderConfig",
    "TextOutput",
    "TinyVAE",
    "TinyVAEConfig",
    "UNet",
    "UNetConfig",
    "VAE",
    "VAEConfig",
    "VisionOutput",
]
