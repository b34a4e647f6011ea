"""Prompts for parts of a picture: conditions in how predictions become one."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.pipeline.given import arguments, inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A prompt for a part of the picture, for `generate(regions=[…])`.

    prompt: what is to be there, one or one for each prompt of the call; with all signs of prompts.
    mask: white, or 1, where it counts; greys count less. One, or one for each prompt or image; it
        is resized to the picture.
    weight: multiplies the mask, at least 0.

    With m the region's mask times its weight, its prediction is averaged with the others by m at
    each place, and the prompt of the call has what is left of 1 there: max(0, 1 − Σm). So a region
    that covers everything draws what its prompt draws alone, and one of weight 0.5 shares its part
    with the prompt of the call. Each costs an evaluation more. Raises SdjaxError for values that
    do not fit.
    """

    prompt: str | Sequence[str]
    mask: inputs.Pictures
    weight: float = 1.0

    def __post_init__(self):
        checks = {
            "prompt": arguments.texts,
            "mask": inputs.picture_list("L"),
            "weight": arguments.number(0),
        }
        for name, check in checks.items():
            object.__setattr__(self, name, check(f"region's {name}", getattr(self, name)))

    def prompts(self, count: int) -> list[str]:
        """One for each of `count` prompts of a call."""
        if len(self.prompt) not in (1, count):
            raise SdjaxError(
                f"a region's prompt must be one or one a prompt ({count}), got {len(self.prompt)}"
            )
        return self.prompt * (count // len(self.prompt))


def regions(name: str, value: object) -> tuple[Region, ...]:
    """The check of the argument `regions`: one `Region` or several."""
    several = tuple(value) if isinstance(value, list | tuple) else (value,)
    for one in several:
        if not isinstance(one, Region):
            came = repr(one)[:80]
            raise SdjaxError(f"{name} must be a list of sdjax.Region(prompt, mask), got {came}")
    return several


def fields(
    given: Sequence[Region], size: inputs.Size, factor: int, prompts: int, total: int
) -> np.ndarray:
    """What the call's prompt and each region counts: float32 [images, 1 + regions, h, w].

    size: of the picture in pixels; a place of the latents, `factor` of them a side, has their mean.
    They add up to 1 at each place.
    """
    height, width = (side // factor for side in size)
    shares = np.zeros((total, 1 + len(given), height, width))
    for i, region in enumerate(given, 1):
        masks = np.stack([inputs.resized("region's mask", one, size) for one in region.mask])
        means = masks.reshape(len(masks), height, factor, width, factor).mean(axis=(2, 4))
        which = inputs.chosen("a region's mask", len(masks), prompts, total)
        shares[:, i] = region.weight * means[which]
    shares[:, 0] = np.maximum(0, 1 - shares[:, 1:].sum(axis=1))
    return np.float32(shares / shares.sum(axis=1, keepdims=True))
