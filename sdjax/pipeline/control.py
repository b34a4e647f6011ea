"""ControlNets as conditions: a network with its parameters, and a picture for it."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np

from sdjax import parallel
from sdjax.errors import SdjaxError
from sdjax.pipeline import arguments, inputs, programs
from sdjax.weights.parts import ControlNet
from sdjax.words import told_words

# Fields in which a ControlNet agrees with the U-Net that it steers.
_SHARED = (
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet (arXiv 2302.05543) with its parameters, a copy on each local device.

    Called with a picture it gives a value for `generate(controls=[…])`.
    """

    network: ControlNet
    params: Any

    @classmethod
    @told_words
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        dtype: str = "float32",
        variant: str | None = None,
        revision: str | None = None,
        config: str | os.PathLike | None = None,
        offload: bool = False,
    ) -> "Control":
        """Reads a diffusers folder, an original or a diffusers file, or a hub id.

        dtype: what it computes in and its parameters are held in. config: a folder whose
        config.json a single file has in place of what its shapes suggest. offload: see
        `StableDiffusion.from_pretrained`.
        """
        network, params = ControlNet.from_pretrained(
            source, dtype=dtype, variant=variant, revision=revision, config=config
        )
        if offload:
            return cls(network, parallel.to_host(params))
        return cls(network, jax.device_put(params, parallel.replicated()))

    def __call__(
        self,
        picture: inputs.Pictures,
        scale: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        guess: bool = False,
    ) -> "Steering":
        """What the picture asks for: the edges, depths or pose that the network was trained on.

        picture: as `generate` takes `image`, one, or one for each prompt or image; it is resized.
        scale: of what the network adds. start, end: the share of the evaluations before which, and
        after which, it adds nothing. guess: steers the prompt's prediction alone, less where it is
        coarse, so that a prompt may be missing ("guess mode").
        Raises SdjaxError for values that do not fit.
        """
        return Steering(self, picture, scale, start, end, guess)


@dataclasses.dataclass(frozen=True, eq=False)
class Steering:
    """A `Control` with its picture and strength; see `Control.__call__`."""

    control: Control
    picture: inputs.Pictures
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    def __post_init__(self):
        checks = {
            "picture": inputs.picture_list("RGB"),
            "scale": arguments.number(),
            "start": arguments.number(0, 1),
            "end": arguments.number(0, 1),
            "guess": arguments.switch,
        }
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.start >= self.end:
            raise SdjaxError(f"start must lie before end, got {self.start:g} and {self.end:g}")

    def check(self, unet) -> None:
        """SdjaxError where the network is no ControlNet of this U-Net's family."""
        own = self.control.network.config
        for name in _SHARED:
            if getattr(own, name) != getattr(unet, name):
                raise SdjaxError(
                    f"this ControlNet is of another family than the model: its {name} is "
                    f"{getattr(own, name)}, the model's {getattr(unet, name)}"
                )

    def arrays(
        self, size: inputs.Size, which: np.ndarray, branches: int, negatives: int, tables, rows: int
    ) -> programs.Control:
        """The picture of each image and the scale of each branch and evaluation.

        negatives: how many of the branches are not for the prompt. tables: each image's. rows: the
        length of all.
        """
        shown = np.stack([inputs.resized("picture", one, size) for one in self.picture])[which]
        count, done = np.array([[table.evaluations] for table in tables]), np.arange(rows)
        on = (done / count >= self.start) & ((done + 1) / count <= self.end)
        guess = self.guess or self.control.network.config.global_pool_conditions
        steered = np.ones(branches)
        if guess:
            steered[:negatives] = 0
        residuals = 1 + sum(name.startswith("controlnet_down") for name in self.control.params)
        layers = np.ones(residuals)
        if guess and not self.control.network.config.global_pool_conditions:
            layers = np.logspace(-1, 0, residuals)
        scale = np.float32(self.scale * steered[:, None] * on[:, None])
        images = len(which)
        return programs.Control(
            picture=(shown + 1) / 2,
            scale=scale,
            layers=np.tile(np.float32(layers), (images, 1)),
        )


def steerings(name: str, value: object) -> tuple[Steering, ...]:
    """The check of the argument `controls`: values of `Control`, one or several."""
    several = tuple(value) if isinstance(value, list | tuple) else (value,)
    for one in several:
        if not isinstance(one, Steering):
            what = "a Control without a picture: call it with one" if isinstance(one, Control) else (
                repr(one)[:80]
            )  # fmt: skip
            raise SdjaxError(f"{name} must be a list of Control(…)(picture), got {what}")
    return several
