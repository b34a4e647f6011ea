"""ControlNets as conditions: a network with its parameters, and a picture for it."""

import dataclasses

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.pipeline.compiled import arrays
from sdjax.pipeline.given import arguments, inputs
from sdjax.pipeline.steering.base import Source, Steering
from sdjax.weights.parts import ControlNet

# Fields in which a ControlNet agrees with the U-Net that it steers.
_SHARED = (
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


class Control(Source):
    """A ControlNet (arXiv 2302.05543) with its parameters, a copy on each local device.

    Called with a picture it gives a value for `generate(controls=[…])`.
    """

    kind = ControlNet

    def __call__(
        self,
        picture: inputs.Pictures,
        scale: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        guess: bool = False,
    ) -> "Steered":
        """What the picture asks for: the edges, depths or pose that the network was trained on.

        picture: as `generate` takes `image`, one, or one for each prompt or image; it is resized.
        scale: of what the network adds. start, end: the share of the evaluations before which, and
        after which, it adds nothing. guess: steers the prompt's prediction alone, less where it is
        coarse, so that a prompt may be missing ("guess mode").
        Raises SdjaxError for values that do not fit.
        """
        return Steered(self, picture, scale, start, end, guess)


@dataclasses.dataclass(frozen=True, eq=False)
class Steered(Steering):
    """A `Control` with its picture and strength; see `Control.__call__`."""

    guess: bool = False

    acts = "controls"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "guess", arguments.switch("guess", self.guess))

    def check(self, unet, factor, size) -> None:
        own = self.source.network.config
        for name in _SHARED:
            if getattr(own, name) != getattr(unet, name):
                raise SdjaxError(
                    f"this ControlNet is of another family than the model: its {name} is "
                    f"{getattr(own, name)}, the model's {getattr(unet, name)}"
                )
        if own.downsampling != factor:
            raise SdjaxError(
                f"this ControlNet is for latents of {own.downsampling} pixels, the model's have "
                f"{factor}"
            )

    def encoded(self, size, tile) -> np.ndarray:
        return self.resized(size)

    def arrays(self, encoded, which, branches, negatives, tables, rows) -> arrays.Control:
        images, params = len(which), self.source.params
        pooled = self.source.network.config.global_pool_conditions
        scale = self.shares(branches, tables, rows)
        if self.guess or pooled:
            scale[:, :negatives] = 0
        residuals = 1 + sum(name.startswith("controlnet_down") for name in params)
        # Diffusers' weights of guess mode, from the finest to the middle.
        layers = np.logspace(-1, 0, residuals) if self.guess and not pooled else np.ones(residuals)
        return arrays.Control(
            picture=encoded[which][:, None],
            scale=scale,
            layers=np.tile(np.float32(layers), (images, 1, 1)),
        )
