"""Motion modules trained inside a frozen U-Net (AnimateDiff, arXiv 2307.04725)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from sdjax.errors import SdjaxError, check_at_least
from sdjax.models.motion import MotionConfig
from sdjax.models.unet import UNet
from sdjax.weights.motion import motion_of, with_motion, write_motion
from sdjax.weights.parts import unet_inputs

from .adaptation import Adaptation, as_float32


@dataclass(frozen=True)
class Motion(Adaptation):
    """Attention over the frames of clips, beside the layers of a model of pictures that stay.

    Batches hold clips: latents [b, F, h, w, C].
    """

    heads: int = 8
    """Of attention; they divide the U-Net's widths."""
    layers: int = 1
    """Transformer blocks of a module."""
    positions: int = 32
    """The most frames of a clip."""
    middle: bool = True
    """Whether the U-Net's middle has a module too, where there is one."""

    of_clips: ClassVar = True

    def __post_init__(self):
        check_at_least(1, self, "heads", "layers", "positions")

    def fitted(self, networks):
        """With the U-Net that has modules after each of its layers."""
        unet = networks.unet.config
        if unet.of_clips:
            raise SdjaxError("the model makes clips by itself: it takes no motion modules")
        for width in unet.block_out_channels:
            if width % self.heads:
                raise SdjaxError(
                    f"adaptation.heads {self.heads} must divide the U-Net's widths "
                    f"{unet.block_out_channels}"
                )
        config = MotionConfig(
            block_out_channels=unet.block_out_channels,
            motion_layers_per_block=unet.layers_per_block,
            motion_transformer_layers_per_block=self.layers,
            motion_transformer_layers_per_mid_block=self.layers,
            motion_num_attention_heads=self.heads,
            motion_norm_num_groups=unet.norm_num_groups,
            motion_max_seq_length=self.positions,
            use_motion_mid_block=self.middle and unet.mid_block_type is not None,
        )
        made = networks.unet.clone(motion=config)
        return self.bound(config=config, unet=unet), replace(networks, unet=made)

    def init(self, key, base):
        """Fresh modules, which add nothing yet."""
        del base
        x, *rest = unet_inputs(self.unet)
        fresh = UNet(self.unet, motion=self.config).init(key, x[:, None], *rest)["params"]
        return as_float32({"motion": motion_of(fresh)})

    def apply(self, base, tree, key=None):
        """The base with these modules in its U-Net."""
        del key
        return {**base, "unet": with_motion(base["unet"], tree["motion"])}

    def export(self, tree, folder, model, networks, dtype="float32", about=None):
        """Writes `motion/`, a folder of diffusers' MotionAdapter."""
        del networks, about
        place = folder / "motion"
        betas = model.scheduler_config.get("beta_schedule", "linear")
        write_motion(self.config, tree["motion"], place, dtype, betas)
        return place
