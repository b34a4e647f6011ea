"""Few-step samplers of distilled networks: LCM, TCD and consistency models."""

import numpy as np

from sdjax.diffusion.samplers.checks import check_eta
from sdjax.diffusion.tables import Row


def lcm(grid, network, timestep_scaling=10.0, sigma_data=0.5):
    """Latent consistency (Luo et al. 2023, arXiv 2310.04378): x_0, then noise to the next level.

        D = c_skip·x + c_out·x_0,   c_skip = d²/(τ² + d²),   c_out = τ/√(τ² + d²),   τ = 10·t
    """
    rows = []
    for i in range(len(grid)):
        t, alpha, sigma, alpha_next, sigma_next = grid[i]
        scaled = t * timestep_scaling
        skip = sigma_data**2 / (scaled**2 + sigma_data**2)
        out = scaled / (scaled**2 + sigma_data**2) ** 0.5
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                derivative=(skip, out, 0),
                x=(0, 0, alpha_next),
                noise=sigma_next,
                interval=(grid.ratio[i], grid.ratio_next[i]),
            )
        )
    return rows


def tcd(grid, network, eta=0.3):
    """Trajectory consistency (Zheng et al. 2024, arXiv 2402.19159, algorithm 4).

    A DDIM step to timestep ⌊(1 − η)·t'⌋, then noise up to t'.
    """
    check_eta(eta, most=1)
    rows = []
    for i in range(len(grid)):
        t, alpha, sigma, _, _ = grid[i]
        last = i + 1 == len(grid)
        t_next = 0 if last else int(grid.timesteps[i + 1])
        below = grid.signal[int(np.floor(np.float32(1 - eta) * np.float32(t_next)))]
        kept = 1.0 if last else grid.signal[t_next] / below
        u, v, w = (kept**0.5 * (1 - below) ** 0.5 * e for e in network.raw_epsilon(alpha, sigma))
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                derivative=(u, (kept * below) ** 0.5 + v, w),
                x=(0, 0, 1),
                noise=(1 - kept) ** 0.5,
                interval=(grid.ratio[i], grid.ratio_next[i]),
            )
        )
    return rows


def consistency(grid, network, noise=1.0):
    """Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1)."""
    low = network.boundary
    rows = []
    for i in range(len(grid)):
        t, alpha, sigma, _, sigma_next = grid[i]
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                x=(0, 0, 1),
                noise=noise * max(sigma_next**2 - low**2, 0) ** 0.5,
                interval=(sigma, sigma_next),
            )
        )
    return rows
