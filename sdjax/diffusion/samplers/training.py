"""DDPM and DDIM: steps between timesteps of the training schedule."""

import numpy as np

from sdjax.diffusion.samplers.checks import check_eta
from sdjax.diffusion.tables import Row
from sdjax.errors import SdjaxError


def ddpm(grid, network, variance="fixed_small", schedule_betas=False):
    """Ancestral sampling: x' ~ q(x' | x, x_0) (Ho et al. 2020, equations 6, 7 and 11).

        mean = √ᾱ'·β/(1−ᾱ) · x_0 + √(1−β)·(1−ᾱ')/(1−ᾱ) · x,      1 − β = ᾱ/ᾱ'

    Args:
      variance: "fixed_small", β·(1−ᾱ')/(1−ᾱ); "fixed_large", β; or "learned_range", between the
        two in the logarithm by the network's variance fraction (arXiv 2102.09672, equation 15).
      schedule_betas: take β from the schedule where a step goes one timestep down (UnCLIP).
    """
    if variance not in ("fixed_small", "fixed_large", "learned_range"):
        raise SdjaxError(
            f"unknown variance {variance!r}: expected fixed_small, fixed_large or learned_range"
        )
    rows = []
    for i in range(len(grid)):
        t, alpha, sigma, alpha_next, sigma_next = grid[i]
        # Near t = 0 little of 1 − ᾱ/ᾱ' is left in float32, and samples of the reference
        # implementations show it: rounded as there.
        kept = float(np.float32(alpha**2) / np.float32(alpha_next**2))
        beta = 1 - kept
        t_next = grid.timesteps[i + 1] if i + 1 < len(grid) else -1
        if schedule_betas and t_next == t - 1:
            beta = grid.betas[int(t)]
            kept = 1 - beta
        small = max(sigma_next**2 / sigma**2 * beta, 1e-20)
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                x=(kept**0.5 * sigma_next**2 / sigma**2, 0, alpha_next * beta / sigma**2),
                noise=(beta if variance == "fixed_large" else small) ** 0.5 if t > 0 else 0,
                spread=np.log(beta / small) if variance == "learned_range" else 0,
                interval=(grid.ratio[i], grid.ratio_next[i]),
            )
        )
    return rows


def ddim(grid, network, eta=0.0, reuse_x_0=False):
    """Song et al. 2020 (arXiv 2010.02502), equations 12 and 16.

        x' = √ᾱ'·x_0 + √(1 − ᾱ' − s²)·ε + s·noise,   s = η·√((1−ᾱ')/(1−ᾱ)·(1 − ᾱ/ᾱ'))

    On a rising grid this is DDIM inversion.

    Args:
      eta: 0 is deterministic, 1 is DDPM with the small variance.
      reuse_x_0: ε follows from x_0 after clipping, not from the prediction.
    """
    check_eta(eta, most=1)
    if eta and grid.inverse:
        raise SdjaxError(f"eta adds noise: from data to noise it must be 0, got {eta}")
    rows = []
    for i in range(len(grid)):
        t, alpha, sigma, alpha_next, sigma_next = grid[i]
        spread = eta * sigma_next / sigma * (1 - (alpha / alpha_next) ** 2) ** 0.5 if eta else 0.0
        direction = (sigma_next**2 - spread**2) ** 0.5
        epsilon = network.epsilon if reuse_x_0 else network.raw_epsilon
        u, v, w = (direction * part for part in epsilon(alpha, sigma))
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                derivative=(u, alpha_next + v, w),
                x=(0, 0, 1),
                noise=spread,
                interval=(grid.ratio[i], grid.ratio_next[i]),
            )
        )
    return rows
