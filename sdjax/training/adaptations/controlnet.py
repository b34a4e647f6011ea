"""A ControlNet trained beside a frozen model (arXiv 2302.05543)."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError
from sdjax.models.controlnet import UNET_ONLY, ControlNetConfig
from sdjax.models.unet_config import UNetConfig
from sdjax.weights import parts

from .adaptation import Adaptation, Conditions, as_float32

WIDTHS = (16, 32, 96, 256)  # the published hint network's, of an eighth of the picture


@dataclass(frozen=True)
class ControlNet(Adaptation):
    """A copy of the U-Net's encoder that a picture steers through convolutions of zeros.

    Batches hold "control" [b, H, W, channels] in 0 … 1.
    """

    channels: int = 3
    """Of the control picture."""
    dropout: float = 0.0
    """Share of the images whose control picture is zeros."""

    needs: ClassVar = ("control",)

    def __post_init__(self):
        if self.channels < 1:
            raise SdjaxError(f"adaptation.channels must be at least 1, got {self.channels}")
        if not 0 <= self.dropout < 1:
            raise SdjaxError(f"adaptation.dropout must be in [0, 1), got {self.dropout}")

    def fitted(self, networks):
        """With the network of the model's own architecture."""
        unet, factor = networks.unet.config, networks.vae.config.downsampling
        levels = factor.bit_length()
        if 2 ** (levels - 1) != factor or levels > len(WIDTHS):
            raise SdjaxError(
                f"a ControlNet's picture is 1, 2, 4 or 8 times its latents' size, this model's "
                f"autoencoder has {factor}"
            )
        shared = {field.name for field in fields(UNetConfig)} - set(UNET_ONLY)
        config = ControlNetConfig(
            **{name: getattr(unet, name) for name in shared},
            conditioning_channels=self.channels,
            conditioning_embedding_out_channels=WIDTHS[:levels],
        )
        network = parts.ControlNet(config)
        return self.bound(network=network), replace(networks, control=network)

    def init(self, key, base):
        """Fresh hint network and zero convolutions; all else is the U-Net's."""
        config = self.network.config
        x, t, context, added, _, labels = parts.unet_inputs(config)
        sides = (config.downsampling * side for side in x.shape[1:3])
        picture = jnp.zeros((1, *sides, config.conditioning_channels))
        fresh = self.network.init(key, x, t, context, picture, added, labels)["params"]
        own, unet = flatten_dict(fresh), flatten_dict(base["unet"])
        return as_float32({"controlnet": unflatten_dict(
            {path: unet.get(path, leaf) for path, leaf in own.items()}
        )})

    def apply(self, base, tree, key=None):
        """The base beside the ControlNet."""
        del key
        return {**base, **tree}

    def conditions(self, batch, encode, keys):
        """The control pictures, some of them zeros."""
        del encode
        picture = batch["control"]
        if self.dropout:
            u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 103)))(keys)
            picture = jnp.where((u < self.dropout)[:, None, None, None], 0, picture)
        return Conditions(picture=picture)

    def shown(self, pictures):
        """The control pictures, as a ControlNet takes them."""
        return {"controls": [2 * picture - 1 for picture in pictures["control"]]}

    def export(self, tree, folder, model, networks, dtype="float32", about=None):
        """Writes `controlnet/`, a diffusers folder."""
        del model, networks, about
        place = folder / "controlnet"
        self.network.save_pretrained(tree["controlnet"], place, dtype)
        return place
