"""Pictures on the way: what the network takes the finished picture for, small or by TAESD."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from sdjax import parallel
from sdjax.errors import SdjaxError
from sdjax.models.tiny_vae import TinyVAE
from sdjax.models.vae import VAE
from sdjax.pipeline.compiled import arrays, coding, places
from sdjax.pipeline.given import arguments
from sdjax.pipeline.results.pictures import to_pictures

Show = Callable[[int, int, list[Image.Image]], None]
PATCHES, SIDE = 64, 8  # pictures that the linear map is fitted to, and their latents' side


@dataclasses.dataclass(frozen=True, eq=False)
class Preview:
    """Calls `show(step, steps, pictures)` after every so many evaluations, and after the last.

    Given as `generate(preview=…)`; a function alone will do. The pictures are those of the batch
    under way, as PIL images: what the network takes the finished ones for.

    show: the function. every: evaluations from one call to the next. vae, params: an autoencoder
    that decodes them, such as a TAESD (`sdjax.TinyVAE.from_pretrained`); without one they have a
    pixel a latent, by a linear map that is fitted to the model's own autoencoder.
    """

    show: Show
    every: int = 1
    vae: VAE | TinyVAE | None = None
    params: Any = None

    def __post_init__(self):
        if not callable(self.show):
            arguments.refuse("preview", "a function of (step, steps, pictures)", self.show)
        object.__setattr__(self, "every", arguments.whole(1)("every", self.every))
        if (self.vae is None) != (self.params is None):
            raise SdjaxError("a preview's autoencoder needs its parameters: give vae and params")
        if self.vae is not None and not isinstance(self.vae, VAE | TinyVAE):
            arguments.refuse("vae", "a TinyVAE or a VAE", self.vae)


def preview(name: str, value: object) -> Preview:
    """The check of the argument `preview`."""
    return value if isinstance(value, Preview) else Preview(value)


def check_fits(asked: Preview | None, latent_channels: int) -> None:
    """SdjaxError where a preview's autoencoder has other latents than the model."""
    given = None if asked is None or asked.vae is None else asked.vae.config.latent_channels
    if given not in (None, latent_channels):
        raise SdjaxError(
            f"the preview's autoencoder has {given} channels of latents, "
            f"the model {latent_channels}"
        )


def shown(
    asked: Preview, vae: VAE | TinyVAE, params, place: places.Place, seeds: np.ndarray
) -> Callable:
    """What `progress.carry_out` calls: decodes a batch under way and shows it.

    vae, params: the model's. seeds: of the batch's images.
    """
    if asked.vae is None:
        matrix, offset = linear_map(vae, params, place.on)

        def decode(latents):
            pixels = places.joined(latents, place, len(seeds)) @ matrix + offset
            return np.clip(pixels, -1, 1)
    else:
        own = place.on.put(asked.params)
        run = places.compiled(
            coding.latents_to_pixels, arrays.Coder(asked.vae), in_axes=(None, 0), on=place.on
        )

        def decode(latents):
            return places.joined(run(own, latents), place, len(seeds))

    def show(step, steps, underway):
        pixels = np.nan_to_num(decode(underway.x_0))
        asked.show(step, steps, to_pictures(pixels, [int(seed) for seed in seeds]))

    return show


def linear_map(vae: VAE | TinyVAE, params, on=parallel.COPIES) -> tuple[np.ndarray, np.ndarray]:
    """(matrix [C, 3], offset [3]): pixels in [-1, 1] ≈ latents @ matrix + offset.

    The latents are in the U-Net's scale. Fitted by least squares to what the autoencoder makes of
    patches of colour, which are the same every time.
    """
    colours = patches()
    latents = latents_of(vae, params, colours, on)
    # At the edges the encoder sees padding.
    inside = (slice(None), slice(1, -1), slice(1, -1))
    known, wanted = (a[inside].reshape(-1, a.shape[-1]) for a in (latents, colours))
    known = np.concatenate([known, np.ones((len(known), 1))], axis=1)
    solution = np.linalg.lstsq(known.astype(np.float64), wanted, rcond=None)[0]
    return np.float32(solution[:-1]), np.float32(solution[-1])


def latents_of(
    vae: VAE | TinyVAE, params, colours: np.ndarray, on=parallel.COPIES
) -> np.ndarray:
    """Latents [N, h, w, C] in the U-Net's scale of pictures with a colour [N, h, w, 3] for each."""
    factor, devices = vae.config.downsampling, on.groups
    pictures = np.repeat(np.repeat(colours, factor, axis=1), factor, axis=2)
    encode = places.compiled(
        coding.pixels_to_moments, arrays.Coder(vae), in_axes=(None, 0), on=on
    )
    rows = np.minimum(np.arange(-(-len(pictures) // devices) * devices), len(pictures) - 1)
    mean, _ = encode(params, pictures[rows].reshape(devices, -1, *pictures.shape[1:]))
    mean = np.asarray(mean).reshape(-1, *mean.shape[2:])[: len(pictures)]
    return coding.scaled(vae.config, mean)


def patches(seed: int = 0) -> np.ndarray:
    """Four squares of colour each, with white or black strewn in, a value for each latent: float32
    [PATCHES, SIDE, SIDE, 3] in [-1, 1]."""
    drawn = np.random.RandomState(seed)
    half = SIDE // 2
    squares = drawn.uniform(-1, 1, (PATCHES, 2, 2, 3)).repeat(half, axis=1).repeat(half, axis=2)
    paper = drawn.choice([-1.0, 1.0, 1.0], (PATCHES, 1, 1, 1))
    strewn = drawn.uniform(size=(PATCHES, SIDE, SIDE, 1)) < 0.5
    return np.float32(np.where(strewn, paper, squares))
