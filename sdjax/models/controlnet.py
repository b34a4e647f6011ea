"""ControlNet (arXiv 2302.05543): a picture steers the U-Net through a copy of its encoder.

Parameters carry diffusers' names, and a configuration has the fields of its config.json.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.inputs import check_floats
from sdjax.models.layers import Conv, zeros_init
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig

CHANNEL_ORDERS = ("rgb", "bgr")
# What the encoder's configuration takes from the U-Net's and diffusers' ControlNetModel lacks.
UNET_ONLY = (
    "add_attention",
    "attn_norm_num_groups",
    "center_input_sample",
    "conv_in_kernel",
    "conv_out_kernel",
    "dropout",
    "out_channels",
    "reverse_transformer_layers_per_block",
    "sample_size",
    "time_cond_proj_dim",
    "time_embedding_dim",
    "up_block_types",
)


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """Fields and defaults of diffusers' ControlNetModel: the U-Net's encoder and the hint network.

    `conditioning_embedding_out_channels` are the hint network's widths; each but the first halves
    the picture. `global_pool_conditions` averages every residual over the image.
    """

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    global_pool_conditions: bool = False

    def __post_init__(self):
        # There is no way up; the fields of the U-Net that describe one follow the levels.
        object.__setattr__(self, "up_block_types", ("UpBlock2D",) * len(self.block_out_channels))
        super().__post_init__()
        if self.controlnet_conditioning_channel_order not in CHANNEL_ORDERS:
            raise SdjaxError(
                f"controlnet_conditioning_channel_order: expected one of {list(CHANNEL_ORDERS)}, "
                f"got {self.controlnet_conditioning_channel_order!r}"
            )
        changed = [
            name
            for name in UNET_ONLY
            if name != "up_block_types" and getattr(self, name) != getattr(UNetConfig, name)
        ]
        if changed:
            raise SdjaxError(f"a ControlNet configuration has no field {', '.join(changed)}")

    @property
    def downsampling(self) -> int:
        """Pixels of the picture per latent pixel along each side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    @property
    def class_name(self):
        """The diffusers class that loads this network."""
        return "ControlNetModel"

    def to_dict(self):
        """A config.json that diffusers loads."""
        return {k: v for k, v in super().to_dict().items() if k not in UNET_ONLY}


class HintNetwork(nn.Module):
    """A picture [B, f·h, f·w, channels] to what is added to the latent's features, [B, h, w, C]."""

    config: ControlNetConfig
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, picture):
        widths = self.config.conditioning_embedding_out_channels
        conv = functools.partial(Conv, dtype=self.dtype, tile=self.tile)
        x = nn.silu(conv(widths[0], name="conv_in")(picture))
        for i, (width, following) in enumerate(zip(widths, widths[1:], strict=False)):
            x = nn.silu(conv(width, name=f"blocks.{2 * i}")(x))
            x = nn.silu(conv(following, stride=2, padding=1, name=f"blocks.{2 * i + 1}")(x))
        features = self.config.block_out_channels[0]
        return conv(features, kernel_init=zeros_init, name="conv_out")(x)


class ControlNet(UNet):
    """The U-Net's encoder and middle, steered by a picture; each result leaves through a zero conv.

    Fresh parameters give zeros, so that training starts at the unsteered U-Net.
    """

    config: ControlNetConfig

    @nn.compact
    def __call__(self, x, t, context, picture, added=None, class_labels=None):
        """x, t, context, added, class_labels as for the U-Net; picture [B, f·H, f·W, channels].

        The picture (edges, depth, pose, …) has values in [0, 1], not [-1, 1]. Returns the pair
        that the U-Net takes as `controls`, float32: a tuple with one residual for each skip, and
        the middle's. Multiply them to weaken the control, add those of several networks.
        """
        config = self.config
        self.check(x, context, added, None, class_labels)
        check_floats(": bytes x become x / 255", picture=picture)
        factor = config.downsampling
        expected = (
            x.shape[0], factor * x.shape[1], factor * x.shape[2], config.conditioning_channels
        )
        if picture.shape != expected:
            raise SdjaxError(f"ControlNet picture: expected {expected}, got {picture.shape}")
        if config.controlnet_conditioning_channel_order == "bgr":
            picture = picture[..., ::-1]
        emb = self.embed(x.shape[0], t, context, added, None, class_labels)
        network = HintNetwork(config, self.dtype, self.tile, name="controlnet_cond_embedding")
        hint = network(picture)
        middle, skips = self.encode(x, emb, context.astype(self.dtype), hint)

        def leave(features, name):
            conv = Conv(
                features.shape[-1], 1, dtype=self.dtype, kernel_init=zeros_init, name=name
            )
            residual = conv(features).astype(jnp.float32)
            if config.global_pool_conditions:
                residual = residual.mean((1, 2), keepdims=True)
            return residual

        down = tuple(leave(x, f"controlnet_down_blocks.{i}") for i, x in enumerate(skips))
        return down, leave(middle, "controlnet_mid_block")
