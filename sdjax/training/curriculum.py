"""What a run draws first, where all at once is not learned."""

import re
from dataclasses import dataclass

import numpy as np

from sdjax.errors import SdjaxError, check_at_least


@dataclass(frozen=True)
class Curriculum:
    """The easier part that a run begins with (curriculum learning, Bengio et al. 2009)."""

    examples: int = 0
    """For how many pictures it holds; 0 for no curriculum."""
    captions: str = ""
    """Regular expression: only pictures whose captions match are drawn meanwhile."""
    timestep_mean: float | None = None
    """Takes the place of denoising.timestep_mean meanwhile. A greater one prefers high noise, where
    it is decided what lies where."""

    def __post_init__(self):
        check_at_least(0, self, "examples")
        if bool(self.examples) != bool(self.captions or self.shifts):
            raise SdjaxError(
                "a curriculum has examples and, of captions and timestep_mean, one or both"
            )
        try:
            re.compile(self.captions)
        except re.error as error:
            raise SdjaxError(
                f"curriculum.captions {self.captions!r} is not a regular expression: {error}"
            ) from error

    @property
    def shifts(self) -> bool:
        """Whether it draws other timesteps."""
        return self.timestep_mean is not None

    def items(self, captions) -> np.ndarray:
        """Indices of the captions [N] that it draws, int [n]; SdjaxError where there are none."""
        found = np.flatnonzero([re.search(self.captions, caption) for caption in captions])
        if not len(found):
            raise SdjaxError(f"no caption matches curriculum.captions {self.captions!r}")
        return found
