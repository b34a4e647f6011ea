"""U-Nets that take further channels beside the latents, made from ordinary ones."""

import abc
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.pipeline.compiled.coding import scaled

from .adaptation import Adaptation, Conditions, Networks
from .full import Full
from .masks import MaskConfig, random_mask


class _Widened(Full):
    """A `Full` whose U-Net's first convolution takes more channels; the new ones begin at zero."""

    @abc.abstractmethod
    def extra(self, latents: int) -> int:
        """How many channels there are beside those of the latents."""

    def fitted(self, networks):
        """With a U-Net of these channels; SdjaxError where it has others already."""
        config = networks.unet.config
        plain = networks.vae.config.latent_channels
        wanted = plain + self.extra(plain)
        if config.in_channels not in (plain, wanted):
            raise SdjaxError(
                f"{type(self).__name__} makes a U-Net of {wanted} channels from one of {plain} or "
                f"{wanted}; this model's takes {config.in_channels}"
            )
        unet = networks.unet.clone(config=replace(config, in_channels=wanted))
        return self.bound(width=wanted, vae=networks.vae.config), replace(networks, unet=unet)

    def init(self, key, base):
        """The chosen parameters as they are, the new channels at zero.

        The whole first convolution is trained, whatever `layers` says of it.
        """
        tree = super().init(key, base)
        kernel = jnp.asarray(base["unet"]["conv_in"]["kernel"], jnp.float32)
        missing = self.width - kernel.shape[2]
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
        unet = dict(tree.get("unet", {}))
        unet["conv_in"] = {**unet.get("conv_in", {}), "kernel": kernel}
        return {**tree, "unet": unet}


@dataclass(frozen=True)
class Inpaint(_Widened):
    """A U-Net that repaints: latents, mask and the masked picture's latents, in this order.

    As Stable Diffusion's inpainting models were trained: from an ordinary model, with zeros for
    the new channels, random masks, and for a quarter of the pictures everything masked.
    """

    masks: MaskConfig = MaskConfig()
    needs: ClassVar = ("image",)

    def extra(self, latents):
        """A mask and a picture."""
        return 1 + latents

    def conditions(self, batch, encode, keys):
        """Random masks of the images, and the latents of what they leave."""
        images = batch["image"]
        draw = jax.vmap(lambda key: random_mask(self.masks, key, images.shape[1:3]))
        mask = draw(jax.vmap(lambda key: jax.random.fold_in(key, 100))(keys))[..., None]
        mean, std = encode(images * (1 - mask))
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, 101), mean.shape[1:])
        )(keys)
        factor = images.shape[1] // mean.shape[1]
        small = mask[:, ::factor, ::factor]  # as diffusers resizes masks: nearest
        return Conditions(channels=jnp.concatenate(
            [small, scaled(self.vae, mean + std * noise)], axis=-1
        ))


    def shown(self, pictures):
        """The pictures, to be repainted in their middle."""
        _, height, width, _ = pictures["image"].shape
        mask = np.zeros((height, width), np.float32)
        mask[height // 4:-(height // 4), width // 4:-(width // 4)] = 1
        return {"image": list(pictures["image"]), "mask": mask}


@dataclass(frozen=True)
class InstructPix2Pix(_Widened):
    """A U-Net that edits a picture by an instruction (arXiv 2211.09800).

    Batches hold "original", the picture before, beside "image", after. Its latents, the mean and
    without a scale, stand beside x. With probability `dropout` each, the text is empty, the picture
    is zeros, or both.
    """

    dropout: float = 0.05
    needs: ClassVar = ("original",)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.dropout <= 1 / 3:
            raise SdjaxError(f"adaptation.dropout must be in 0 … 1/3, got {self.dropout}")

    def extra(self, latents):
        """A picture."""
        return latents

    def conditions(self, batch, encode, keys):
        """The picture's latents, and which images have no text."""
        mean, _ = encode(batch["original"])
        u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 102)))(keys)
        without_text = u < 2 * self.dropout
        without_picture = (u >= self.dropout) & (u < 3 * self.dropout)
        return Conditions(
            channels=jnp.where(without_picture[:, None, None, None], 0, mean),
            without_text=without_text,
        )

    def shown(self, pictures):
        """The pictures before."""
        return {"image": list(pictures["original"])}


def with_channels(adaptation: Adaptation, networks: Networks) -> Adaptation:
    """The adaptation with what a U-Net of further channels, one that repaints or edits, is given
    beside x: random masks, or pictures before the edit.

    Raises SdjaxError where the U-Net takes other channels, or the adaptation is a ControlNet.
    """
    taken, plain = networks.unet.config.in_channels, networks.vae.config.latent_channels
    if taken == plain or isinstance(adaptation, _Widened):
        return adaptation
    kinds = [kind for kind in (Inpaint(), InstructPix2Pix()) if plain + kind.extra(plain) == taken]
    if not kinds or networks.control is not None:
        raise SdjaxError(
            f"{type(adaptation).__name__} cannot be trained on a U-Net of {taken} channels: "
            f"expected {plain}" + ("" if networks.control is not None else ", or those of one that "
                                   "repaints or edits")
        )
    beside, _ = kinds[0].fitted(networks)
    return adaptation.bound(
        conditions=beside.conditions, needs=beside.needs, shown=beside.shown
    )
