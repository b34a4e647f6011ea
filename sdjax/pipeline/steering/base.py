"""What the values of `controls` have in common: a network, a picture for it, and how much of it."""

import abc
import dataclasses
import os
from typing import Any, ClassVar

import jax
import numpy as np

from sdjax import parallel
from sdjax.errors import SdjaxError
from sdjax.pipeline.given import arguments, inputs
from sdjax.words import told_words


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A network with its parameters, a copy on each local device: a `Steering` once it is called
    with a picture."""

    network: Any
    params: Any

    kind: ClassVar[type]
    """The network with files."""

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
    ):
        """Reads a diffusers folder, an original or a diffusers file, or a hub id.

        dtype: what it computes in and its parameters are held in. config: a folder whose
        config.json a single file has in place of what its shapes suggest. offload: see
        `StableDiffusion.from_pretrained`.
        """
        network, params = cls.kind.from_pretrained(
            source, dtype=dtype, variant=variant, revision=revision, config=config
        )
        return cls(network, held(params, offload))


def held(params, offload: bool):
    """Parameters where they are kept: on each local device, or with `offload` on the host."""
    return parallel.to_host(params) if offload else jax.device_put(params, parallel.replicated())


@dataclasses.dataclass(frozen=True, eq=False)
class Steering(abc.ABC):
    """A source with its picture, its strength, and the share of the evaluations that it is in."""

    source: Source
    picture: inputs.Pictures
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    acts: ClassVar[str]
    """Which field of `arrays.Branches` its arrays are in."""
    check_picture: ClassVar = staticmethod(inputs.picture_list("RGB"))

    def __post_init__(self):
        checks = {
            "picture": self.check_picture,
            "scale": arguments.number(),
            "start": arguments.number(0, 1),
            "end": arguments.number(0, 1),
        }
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.start >= self.end:
            raise SdjaxError(f"start must lie before end, got {self.start:g} and {self.end:g}")

    @abc.abstractmethod
    def check(self, unet, factor: int, size: inputs.Size) -> None:
        """SdjaxError where it is of another family than the model, or takes no pictures of a size.

        unet: the U-Net's configuration. factor: pixels for each of its latents along a side.
        """

    @abc.abstractmethod
    def encoded(self, size: inputs.Size, tile: tuple[bool, bool]) -> Any:
        """What is made of the pictures once for a request: arrays [P, …] of P pictures.

        tile: whether the axes (y, x) go on at their other end.
        """

    @abc.abstractmethod
    def arrays(
        self, encoded, which: np.ndarray, branches: int, negatives: int, tables, rows: int
    ) -> Any:
        """What the images of a batch get of it, from `encoded` and each one's picture `which`.

        negatives: how many of the branches are not for the prompt. tables: each image's. rows: the
        length of all.
        """

    def shares(self, branches: int, tables, rows: int) -> np.ndarray:
        """float32 [images, branches, rows]: the scale at each evaluation."""
        count, done = np.array([[table.evaluations] for table in tables]), np.arange(rows)
        on = (done / count >= self.start) & ((done + 1) / count <= self.end)
        return np.repeat(np.float32(self.scale * on)[:, None], branches, axis=1)

    def resized(self, size: inputs.Size) -> np.ndarray:
        """The pictures in 0 … 1, float32 [P, H, W, 3]."""
        shown = np.stack([inputs.resized("picture", one, size) for one in self.picture])
        return (shown + 1) / 2


def steerings(name: str, value: object) -> tuple[Steering, ...]:
    """The check of the argument `controls`: one value or several."""
    several = tuple(value) if isinstance(value, list | tuple) else (value,)
    for one in several:
        if isinstance(one, Source):
            raise SdjaxError(
                f"{name} must be pictures: call the {type(one).__name__} in it with one"
            )
        if not isinstance(one, Steering):
            raise SdjaxError(
                f"{name} must be a list of values such as Control(…)(picture), got {one!r:.80}"
            )
    return several
