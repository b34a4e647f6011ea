"""Where a sampler evaluates: timesteps and the signal and noise at them."""

import dataclasses

import numpy as np

from sdjax.diffusion.predictions import prediction_coefficients
from sdjax.errors import SdjaxError


def spaced_timesteps(num_timesteps, steps, spacing="leading", offset=0):
    """`steps` integer timesteps out of 0 … T − 1, falling (arXiv 2305.08891, table 2).

    Args:
      num_timesteps: T.
      steps: how many.
      spacing: "leading" (0, T//n, …, shifted up by `offset`), "trailing" (T − 1 first) or
        "linspace" (both ends).
    """
    if not 1 <= steps <= num_timesteps:
        raise SdjaxError(f"steps must be between 1 and {num_timesteps}, got {steps}")
    match spacing:
        case "leading":
            timesteps = np.arange(steps)[::-1] * (num_timesteps // steps) + offset
        case "trailing":
            ratio = num_timesteps / steps
            timesteps = np.round(np.arange(num_timesteps, 0, -ratio)).astype(int) - 1
        case "linspace":
            timesteps = np.round(np.linspace(0, num_timesteps - 1, steps)).astype(int)[::-1]
        case _:
            raise SdjaxError(
                f"unknown spacing {spacing!r}: expected leading, trailing or linspace"
            )
    if timesteps[0] >= num_timesteps:
        raise SdjaxError(
            f"steps_offset {offset} moves the first timestep to {timesteps[0]}, past the last one "
            f"of the schedule, {num_timesteps - 1}: take fewer steps or a smaller offset"
        )
    return timesteps


@dataclasses.dataclass(frozen=True)
class Network:
    """What is predicted and whether x_0 is bounded: turns noise levels into row coefficients."""

    prediction: str
    bounded: bool

    def at(self, timestep, alpha, sigma):
        """The part of a `Row` for x = α·x_0 + σ·ε."""
        p, q, _, _ = prediction_coefficients(self.prediction, alpha, sigma)
        return {"timestep": float(timestep), "x_0": (p, q)}

    def epsilon(self, alpha, sigma):
        """(u, v, w) of ε as the prediction has it, whatever happened to x_0."""
        _, _, e, f = prediction_coefficients(self.prediction, alpha, sigma)
        return e, 0.0, f
