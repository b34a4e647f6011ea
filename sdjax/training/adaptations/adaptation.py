"""What every adaptation is: a tree to train, and a function of base and tree to parameters."""

import abc
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.models.clip import TextEncoder
from sdjax.models.controlnet import ControlNet
from sdjax.models.unet import UNet
from sdjax.models.vae import VAE
from sdjax.pipeline import StableDiffusion
from sdjax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Networks:
    """The networks of a model, and the tokenizers of its text encoders, keyed by their parts."""

    unet: UNet
    vae: VAE
    encoders: Mapping[str, TextEncoder]
    tokenizers: Mapping[str, Tokenizer]
    control: ControlNet | None = None

    @classmethod
    def of(cls, model: StableDiffusion) -> "Networks":
        """Those of a pipeline."""
        names = model.encoder_parts
        return cls(
            model.unet, model.vae, dict(zip(names, model.text_encoders, strict=True)),
            dict(zip(names, model.tokenizers, strict=True)),
        )

    def in_dtype(self, dtype, remat=False) -> "Networks":
        """The same, computing in `dtype`; the autoencoder keeps its own."""
        def clone(network):
            return network.clone(dtype=dtype, remat=remat)

        return replace(
            self, unet=clone(self.unet),
            encoders={name: clone(encoder) for name, encoder in self.encoders.items()},
            control=None if self.control is None else clone(self.control),
        )


class Conditions(NamedTuple):
    """What an adaptation gives the network beside the noised latents of a batch."""

    channels: jax.Array | None = None
    """float32 [b, h, w, K] beside x at the U-Net's input."""
    picture: jax.Array | None = None
    """float32 [b, H, W, C] in 0 … 1, for a ControlNet."""
    without_text: jax.Array | None = None
    """bool [b]: which images have the empty prompt; None leaves that to the run."""


class Adaptation(abc.ABC):
    """What is trained on top of a checkpoint.

    base: {"unet": tree, "vae": tree, "text_encoder": tree, …}, a pipeline's parameters. A tree
    holds what is trained, float32, keyed by such parts. Subclasses are frozen dataclasses of
    settings.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Arrays that a batch must have beside latents and ids: "image", "original" or "control"."""
    of_clips: ClassVar[bool] = False
    """Whether batches hold clips, latents [b, F, h, w, C], not pictures."""

    @property
    def trains_texts(self) -> bool:
        """Whether the text encoders are among what is trained."""
        return False

    def bound(self, **values) -> "Adaptation":
        """A copy that knows these values of a model; they are no settings."""
        own = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(own, name, value)
        return own

    def fitted(self, networks: Networks) -> "tuple[Adaptation, Networks]":
        """The adaptation with what it takes from this model, and the networks that it makes of it.

        Raises SdjaxError where it does not fit them.
        """
        return self, networks

    @abc.abstractmethod
    def init(self, key: jax.Array, base: Mapping) -> dict:
        """The tree before the first update."""

    def kept(self, base: Mapping) -> dict:
        """What of the base `apply` needs once there is a tree."""
        return dict(base)

    @abc.abstractmethod
    def apply(self, base: Mapping, tree: Mapping, key: jax.Array | None = None) -> dict:
        """The base's parts with their parameters as the tree has them; perhaps with further parts.

        key: of what is random in training; None for none.
        """

    def rates(self, tree: Mapping, learning_rate: float) -> Any:
        """For each leaf of the tree, its learning rate over `learning_rate`."""
        return jax.tree.map(lambda _: 1.0, tree)

    def conditions(self, batch: Mapping, encode, keys: jax.Array) -> Conditions:
        """What the network is given beside x.

        encode: images float32 [b, H, W, 3] in [-1, 1] to (mean, standard deviation) of their
        latents. keys: [b], one an image.
        """
        del batch, encode, keys
        return Conditions()

    def shown(self, pictures: Mapping) -> dict:
        """What `generate` is given for sample pictures, of arrays that the adaptation needs."""
        del pictures
        return {}

    @abc.abstractmethod
    def export(
        self, tree: Mapping, folder: Path, model: StableDiffusion, networks: Networks,
        dtype: str = "float32", about: Mapping[str, str] | None = None,
    ) -> Path:
        """Writes the result into the work folder, as others read it; where to.

        model: the pipeline that was trained on. networks: as `fitted` made them. about: what else
        a file that has room for it says of the training.
        """


def as_float32(tree):
    """A copy of a tree in float32."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)


def adapted(model: StableDiffusion, networks: Networks, params: Mapping) -> StableDiffusion:
    """The pipeline of these networks and parameters, otherwise as `model`."""
    encoders, tokenizers = networks.encoders, networks.tokenizers
    made = StableDiffusion(
        networks.unet.clone(motion=None), networks.vae, encoders.get("text_encoder"), tokenizers.get("text_encoder"),
        model.scheduler_config, {name: params[name] for name in ("unet", "vae", *encoders)},
        text_encoder_2=encoders.get("text_encoder_2"),
        tokenizer_2=tokenizers.get("text_encoder_2"), zero_negative=model.zero_negative,
        guidance_scale=model.guidance_scale, captions=model.captions, placement=model.placement,
    )
    made.motion = networks.unet.motion
    return made
