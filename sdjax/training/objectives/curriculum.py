"""What a run draws first, where all at once is not learned."""

import re
from dataclasses import dataclass

import numpy as np

from sdjax.errors import SdjaxError, check_at_least


@dataclass(frozen=True)
class Lesson:
    """A part of a curriculum: what is drawn for a while, before the next lesson and at last
    everything (curriculum learning, Bengio et al. 2009).
    """

    examples: int
    """For how many pictures it holds."""
    captions: str = ""
    """Regular expression of the captions that it is about."""
    repeats: int = 0
    """0 draws only pictures whose captions match; otherwise all, and those so many times as
    often."""
    timestep_mean: float | None = None
    """Takes the place of denoising.timestep_mean meanwhile. A greater one prefers high noise, where
    it is decided what lies where."""

    def __post_init__(self):
        check_at_least(1, self, "examples")
        check_at_least(0, self, "repeats")
        try:
            re.compile(self.captions)
        except re.error as error:
            raise SdjaxError(
                f"a lesson's captions {self.captions!r} are not a regular expression: {error}"
            ) from error

    def items(self, captions) -> np.ndarray:
        """Indices of the captions [N] that an epoch draws, int [n], some of them repeatedly;
        SdjaxError where no caption matches.
        """
        matches = np.array([bool(re.search(self.captions, caption)) for caption in captions])
        if not matches.any():
            raise SdjaxError(f"no caption matches the lesson's {self.captions!r}")
        times = np.where(matches, self.repeats, 1) if self.repeats else matches
        return np.repeat(np.arange(len(matches)), times)
