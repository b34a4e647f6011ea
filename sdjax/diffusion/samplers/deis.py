"""DEIS: ε extrapolated as a polynomial in log ρ, ρ = σ/α (Zhang & Chen 2022)."""

import numpy as np

from sdjax.diffusion.samplers.checks import check_order
from sdjax.diffusion.tables import Row


def deis(grid, network, order=2, lower_order_final=True, float32_weights=False):
    """ρAB-DEIS in log ρ (arXiv 2204.13902, section 3): x'/α' = x/α + Σ Dₖ·∫ basisₖ(log ρ) dρ.

    Args:
      order: 1 to 3.
      lower_order_final: end with a lower order where there are fewer than 15 steps.
      float32_weights: integrate in float32, where the terms cancel: diffusers' numbers, not the
        formula's.
    """
    check_order(order)
    lower = lower_order_final and grid.total < 15
    ratio, ratio_next = grid.ratio, grid.ratio_next
    if float32_weights:
        ratio, ratio_next = _float32_ratio(ratio), _float32_ratio(ratio_next)
    rows = []
    for i in range(len(grid)):
        t, alpha, sigma, alpha_next, _ = grid[i]
        left = len(grid) - i
        use = min(order, i + 1, left if lower and left < 3 else order)
        nodes = np.log(ratio[[i - k for k in range(use)]])
        rho, rho_next = ratio[i], ratio_next[i]
        integral = _float32_integral if float32_weights and use > 1 else _integral
        weights = [
            alpha_next * float(integral(nodes, k, rho_next) - integral(nodes, k, rho))
            for k in range(use)
        ]
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                derivative=network.epsilon(alpha, sigma),
                x=(alpha_next / alpha, 0, *weights),
            )
        )
    return rows


def _integral(nodes, k, rho):
    """∫ of the Lagrange polynomial of `nodes` number k in u = log ρ: ∫ p·eᵘ du = eᵘ(p − p' + …)."""
    if rho == 0:
        return 0.0
    term = np.poly1d([1.0])
    for j, node in enumerate(nodes):
        if j != k:
            term *= np.poly1d([1.0, -node]) / (nodes[k] - node)
    total = 0.0
    for sign in (1, -1) * len(nodes):
        total += sign * term(np.log(rho))
        term = term.deriv()
    return rho * total


def _float32_ratio(ratio):
    """ρ in float32 as σ over α, both of which are made from it."""
    ratio = ratio.astype(np.float32)
    alpha = 1 / np.sqrt(ratio**2 + 1)
    return ratio * alpha / alpha


def _float32_integral(nodes, k, rho):
    """`_integral` for two or three nodes in float32, its terms summed in diffusers' order."""
    if rho == 0:
        return rho
    u = np.log(rho)
    b, c, *others = np.roll(nodes, -k)
    if not others:
        return rho * (u - c - 1) / (b - c)
    (d,) = others
    return rho * (c * (d - u + 1) - d * u + d + u * u - 2 * u + 2) / ((b - c) * (b - d))
