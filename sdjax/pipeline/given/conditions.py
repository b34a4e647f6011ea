"""What a picture must obey beside its prompt: what a request gives, and as what it acts.

A condition acts in six places of the one program: where the table starts, beside x at the
network's input (`channels`), through other networks (`controls`), as more to attend to (`prompt`),
in how predictions become one (`weights`), and in what is put back after a row (`Kept`).
"""

import dataclasses
from typing import Any

import numpy as np

from sdjax.diffusion.torch_noise import Outer
from sdjax.errors import SdjaxError

INPAINT, EDIT, DEPTH, UPSCALE, MOVE = "inpaint", "edit", "depth", "upscale", "move"
"""What a U-Net is given beside the latents: mask and masked picture, a picture to be edited, its
depths, a small picture, or the picture that a clip is to move."""

NOISE_LEVEL = 20
"""Timestep of the noise in the small picture, where an upscaler is told none."""


def kind_of_channels(unet, vae) -> str | None:
    """What a U-Net is given beside the latents, or None for nothing.

    unet, vae: configurations. Raises SdjaxError for a number of channels that no model has.
    """
    latents, extra = vae.latent_channels, unet.in_channels - vae.latent_channels
    if unet.of_clips:
        if extra != latents:
            raise SdjaxError(
                f"this U-Net of clips takes {unet.in_channels} channels: expected {2 * latents}, of "
                "the latents and of a picture"
            )
        return MOVE
    kinds = {vae.in_channels: UPSCALE, 1: DEPTH, latents: EDIT, latents + 1: INPAINT, 0: None}
    if extra not in kinds:
        raise SdjaxError(
            f"this U-Net takes {unet.in_channels} channels, the latents have {latents}: expected "
            f"{', '.join(str(latents + more) for more in sorted(kinds))}"
        )
    return kinds[extra]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures at the model's size, and which of them each image of a request takes."""

    arrays: np.ndarray
    """float32 [P, H, W, 3] in [-1, 1], or [P, H, W]."""
    which: np.ndarray
    """int[images]."""

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Those of the images with these numbers, [N, …]."""
        return self.arrays[self.which[numbers]]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The pictures that a request gives, and how they act on a model.

    kind: see `kind_of_channels`. strength: float[images], the share of the steps that each takes,
    from its noised `image` on where it is below 1 or nothing is masked. noise_augmentation: standard
    deviation of the noise in a picture to move. random: whether the
    autoencoder draws. frame: a `crop.Frame` where the pictures are crops of others.
    """

    kind: str | None = None
    image: Pictures | None = None
    mask: Pictures | None = None
    depth: Pictures | None = None
    strength: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(1))
    image_guidance_scale: float = 1.5
    noise_level: int = NOISE_LEVEL
    noise_augmentation: float = 0.0
    random: bool = True
    frame: Any = None

    @property
    def starts_from_image(self) -> np.ndarray:
        """bool[images]: whether an image's table begins at the noised image, not at noise."""
        if self.image is None or self.kind in (EDIT, UPSCALE, MOVE):
            return np.zeros(len(self.strength), bool)
        return (self.strength < 1) | (self.mask is None)

    @property
    def keeps(self) -> bool:
        """Whether what is not painted is put back after each row."""
        return self.mask is not None and self.kind is None

    def draws(
        self, number: int, shape: tuple[int, int, int], start: bool
    ) -> dict[str, tuple[int, int, int]]:
        """What is drawn from an image's seed before the sampler's noise: shapes [h, w, C].

        number: of the image. shape: of the latents. start: whether the noise to start from is
        drawn, not given. The order is that of diffusers' pipelines.
        """
        drawn = {}
        if self.kind == MOVE:
            drawn["pixels"] = self.image.arrays.shape[1:]
        if len(shape) > 3 and self.starts_from_image[number]:  # a clip of a clip
            shape = Outer(shape)
        if self.kind == UPSCALE:
            drawn["small"] = (*shape[:2], self.image.arrays.shape[-1])
        if self.random and (self.starts_from_image[number] or self.keeps):
            drawn["image"] = shape
        if start:
            drawn["start"] = shape
        if self.random and self.mask is not None:
            drawn["masked"] = shape
        return drawn

    def masked(self) -> Pictures:
        """The images without what is to be painted, each pair of an image and a mask once."""
        pairs, which = np.unique(
            np.stack([self.image.which, self.mask.which]), axis=1, return_inverse=True
        )
        images, masks = self.image.arrays[pairs[0]], self.mask.arrays[pairs[1]]
        return Pictures(images * (masks < 0.5)[..., None], which.reshape(-1))


def corners(masks: np.ndarray, factor: int) -> np.ndarray:
    """Masks […, H, W] at the latents' size, […, h, w, 1]: the value at each place's corner, which
    is PyTorch's nearest interpolation."""
    return masks[..., ::factor, ::factor, None]


def depths(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps [P, H, W] of depths at the latents' size, each from -1 to 1: float32 [P, h, w, 1].

    As diffusers' pipeline has it: PyTorch's bicubic interpolation, then the ends of the range.
    """
    sides = zip(maps.shape[1:], size, strict=True)
    rows, columns = (interpolation(*side, "bicubic") for side in sides)
    small = np.einsum("hi,pij,wj->phw", rows, maps, columns)
    low, high = (f(small, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    if (high == low).any():
        raise SdjaxError("depth is the same everywhere: expected near and far")
    return np.float32(2 * (small - low) / (high - low) - 1)[..., None]


def interpolation(given: int, wanted: int, kernel: str, corners: bool = False) -> np.ndarray:
    """Weights [wanted, given] of PyTorch's interpolation along a side, the outermost values repeated.

    kernel: "nearest", "bilinear", or "bicubic", which is Keys' with a = -0.75; not widened where the
    result is smaller. corners: whether it goes from the middle of the first pixel to that of the
    last.
    """
    weights = np.zeros((wanted, given))
    if kernel == "nearest":
        weights[np.arange(wanted), np.arange(wanted) * given // wanted] = 1
        return weights
    places = (np.arange(wanted) + 0.5) * given / wanted - 0.5
    if corners:
        places = np.linspace(0, given - 1, wanted)
    for offset in range(-1, 3):
        index = np.floor(places) + offset
        x = np.abs(places - index)
        if kernel == "bilinear":
            own = np.maximum(1 - x, 0)
        else:
            near = (1.25 * x - 2.25) * x**2 + 1
            far = -0.75 * (((x - 5) * x + 8) * x - 4)
            own = np.where(x <= 1, near, far)
        column = np.clip(index, 0, given - 1).astype(int)
        np.add.at(weights, (np.arange(wanted), column), own)
    return weights
