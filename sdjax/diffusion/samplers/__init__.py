"""Samplers by name."""

import numpy as np

from sdjax.diffusion.grids import Network, spaced_timesteps
from sdjax.diffusion.predictions import prediction_name
from sdjax.diffusion.samplers.ancestral import ddim, ddpm
from sdjax.diffusion.tables import build_table
from sdjax.errors import SdjaxError

SAMPLERS = {"ddpm": ddpm, "ddim": ddim}


def sampler(
    name,
    schedule,
    steps,
    *,
    prediction_type="epsilon",
    spacing="leading",
    steps_offset=0,
    timesteps=None,
    start=0,
    clip=None,
    threshold=None,
    pad_to=None,
    dtype=np.float32,
    **options,
):
    """The table of a sampler.

    Args:
      name: "ddpm" or "ddim".
      schedule: the `Schedule` the network was trained with.
      steps: number of steps.
      prediction_type: what the network predicts.
      spacing, steps_offset: see `spaced_timesteps`.
      timesteps: falling timesteps to use instead of a spacing.
      start: how many steps to leave out at the beginning (image to image).
      clip: bound of |x_0|; 1 for pixels in −1…1.
      threshold: (quantile, largest bound) of dynamic thresholding.
      pad_to: rows of the table; by default a power of two from 64 on.
      dtype: of the coefficients.
      options: of the sampler; see its function.
    """
    if name not in SAMPLERS:
        raise SdjaxError(f"unknown sampler {name!r}: expected one of {', '.join(SAMPLERS)}")
    signal = np.asarray(schedule.alphas_cumprod, np.float64)
    if timesteps is None:
        timesteps = spaced_timesteps(len(schedule), steps, spacing, steps_offset)
        if name == "ddim":
            options.setdefault("stride", len(schedule) // steps)
    timesteps = timesteps[start:]
    network = Network(prediction_name(prediction_type), clip is not None or threshold is not None)
    first = signal[timesteps[0]]
    return build_table(
        SAMPLERS[name](signal, timesteps, network, **options),
        initial_scale=1.0,
        start=(first**0.5, (1 - first) ** 0.5),
        clip=clip,
        threshold=threshold,
        pad_to=pad_to,
        dtype=dtype,
    )
