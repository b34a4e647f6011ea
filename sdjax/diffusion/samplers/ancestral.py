"""DDPM and DDIM: steps between any two timesteps of the training schedule."""

import numpy as np

from sdjax.diffusion.tables import Row
from sdjax.errors import SdjaxError


def ddpm(signal, timesteps, network, variance="fixed_small"):
    """Ancestral sampling: x_{t'} ~ q(x_{t'} | x_t, x_0) (Ho et al. 2020, equations 6, 7 and 11).

        mean = √ᾱ'·β/(1−ᾱ) · x_0 + √α·(1−ᾱ')/(1−ᾱ) · x,      α = ᾱ/ᾱ',  β = 1 − α

    Args:
      variance: "fixed_small", β·(1−ᾱ')/(1−ᾱ); "fixed_large", β; or "learned_range", between the
        two in the logarithm by the network's variance fraction (arXiv 2102.09672, equation 15).
    """
    rows = []
    for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, a_next = signal[t], 1.0 if t_next is None else signal[t_next]
        alpha = a / a_next
        beta = 1 - alpha
        small = max((1 - a_next) / (1 - a) * beta, 1e-20)
        match variance:
            case "fixed_small":
                deviation, spread = small**0.5, 0.0
            case "fixed_large":
                deviation, spread = beta**0.5, 0.0
            case "learned_range":
                deviation, spread = small**0.5, np.log(beta) - np.log(small)
            case _:
                raise SdjaxError(
                    f"unknown variance {variance!r}: expected fixed_small, fixed_large or "
                    "learned_range"
                )
        rows.append(
            Row(
                **network.at(t, a**0.5, (1 - a) ** 0.5),
                x=(alpha**0.5 * (1 - a_next) / (1 - a), 0.0, a_next**0.5 * beta / (1 - a)),
                noise=deviation if t > 0 else 0.0,
                spread=spread,
            )
        )
    return rows


def ddim(signal, timesteps, network, eta=0.0, final_signal=1.0, stride=None, reuse_x_0=False):
    """Song et al. 2020 (arXiv 2010.02502), equations 12 and 16.

        x' = √ᾱ'·x_0 + √(1 − ᾱ' − s²)·ε + s·noise,   s = η·√((1−ᾱ')/(1−ᾱ)·(1 − ᾱ/ᾱ'))

    Args:
      eta: 0 is deterministic, 1 is DDPM with the small variance.
      final_signal: ᾱ after the last step.
      stride: distance of t' from t; by default t' is the next timestep of the list.
      reuse_x_0: ε follows from x_0 after clipping instead of from the prediction.
    """
    rows = []
    for i, t in enumerate(timesteps):
        if stride is None:
            t_next = timesteps[i + 1] if i + 1 < len(timesteps) else -1
        else:
            t_next = t - stride
        a, a_next = signal[t], signal[t_next] if t_next >= 0 else final_signal
        deviation = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        alpha, sigma = a**0.5, (1 - a) ** 0.5
        direction = (1 - a_next - deviation**2) ** 0.5
        if reuse_x_0:
            u, v, w = 1 / sigma, -alpha / sigma, 0.0
        else:
            u, v, w = network.epsilon(alpha, sigma)
        rows.append(
            Row(
                **network.at(t, alpha, sigma),
                derivative=(direction * u, a_next**0.5 + direction * v, direction * w),
                x=(0.0, 0.0, 1.0),
                noise=deviation,
            )
        )
    return rows
