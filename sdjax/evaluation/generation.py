"""Pictures of captions by a model, in batches of one size."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rich.progress import track

from sdjax.errors import SdjaxError, check_at_least

from .sheets import to_uint8


@dataclass(frozen=True)
class Generation:
    """How a model is asked for pictures. What is None is the model's own default."""

    steps: int | None = None
    """Sampling steps."""
    guidance_scale: float | None = None
    """How much the caption counts; 1 turns guidance off."""
    sampler: str | None = None
    """A name of `sdjax.sampler`."""
    seed: int = 0
    """Of the first picture; the others take the numbers that follow."""
    batch_size: int = 32
    """Pictures made at once."""

    def __post_init__(self):
        check_at_least(1, self, "batch_size")


class TextToImage(Protocol):
    """What is asked of a model: `sdjax.StableDiffusion` has it."""

    def generate(self, prompt: list[str], *, seed: list[int], output: str, **options) -> np.ndarray:
        """float32 [N, H, W, 3] in [-1, 1] for N prompts and seeds, with output="numpy"."""


def generate(
    model: TextToImage, captions, config: Generation = Generation(), frames: int | None = None
):
    """uint8 [N, H, W, 3] for captions; picture i depends on its caption and on seed + i only.

    frames: for clips of so many, [N, frames, H, W, 3].
    """
    captions = list(captions)
    if not captions:
        raise SdjaxError("there are no captions to make pictures of")
    options = {name: value for name, value in (
        ("steps", config.steps), ("guidance_scale", config.guidance_scale),
        ("sampler", config.sampler), ("frames", frames)) if value is not None}
    size = min(config.batch_size, len(captions))
    made = []
    for start in track(range(0, len(captions), size), description="Generating", transient=True):
        # The last batch is filled up, so that all run the program of one shape.
        rows = np.minimum(np.arange(start, start + size), len(captions) - 1)
        images = model.generate([captions[i] for i in rows], output="numpy", progress=False,
                                weighting=None, seed=[config.seed + int(i) for i in rows],
                                **options)
        flat = to_uint8(images.reshape(-1, *images.shape[-3:]))
        made.append(flat.reshape(images.shape)[:len(captions) - start])
    return np.concatenate(made)
