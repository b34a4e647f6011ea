"""UniPC: a corrector that uses the evaluation of the next step (Zhao et al. 2023)."""

import numpy as np

from sdjax.diffusion.samplers.checks import check_order
from sdjax.diffusion.tables import HISTORY, Row
from sdjax.errors import SdjaxError


def unipc(
    grid, network, order=2, variant="bh2", predict_x_0=True, lower_order_final=True,
    without_corrector=(),
):  # fmt: skip
    """arXiv 2302.04867, algorithms 1 and 2; y is the corrected sample of the step before.

    Args:
      order: 1 to 3.
      variant: B(h) is h for "bh1" and eʰ − 1 for "bh2".
      predict_x_0: the data form, else the noise form.
      lower_order_final: as many orders as steps are left at the end. A last level of zero always
        takes the first order.
      without_corrector: steps after which nothing is corrected.
    """
    check_order(order)
    if variant not in ("bh1", "bh2"):
        raise SdjaxError(f"unknown variant {variant!r}: expected bh1 or bh2")
    levels = [(grid.alpha[i], grid.sigma[i]) for i in range(len(grid))]
    levels.append((grid.alpha_next[-1], grid.sigma_next[-1]))
    if not predict_x_0 and levels[-1][1] == 0:
        raise SdjaxError("the noise form cannot end at zero: set final='sigma_min'")
    rows, used = [], 0
    for i in range(len(grid)):
        t, alpha, sigma, _, _ = grid[i]
        # Over (x, y, D, D₁, D₂, D₃): the sample that the predictor starts from.
        sample = np.eye(3 + HISTORY)[0]
        if i > 0 and i - 1 not in without_corrector:
            ratio, weights = _update(levels, i - 1, used, variant, predict_x_0, corrector=True)
            sample = np.concatenate([[0, ratio], weights])
        left = len(grid) - i
        used = min(order, i + 1, left if lower_order_final else order)
        if levels[i + 1][1] == 0:
            used = 1
        ratio, weights = _update(levels, i, used, variant, predict_x_0, corrector=False)
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                derivative=(0.0, 1.0, 0.0) if predict_x_0 else network.epsilon(alpha, sigma),
                x=tuple(ratio * sample + np.concatenate([[0, 0], weights])),
                y=tuple(sample),
            )
        )
    return rows


def _update(levels, i, order, variant, predict_x_0, corrector):
    """The step from level i to the next as x' = ratio·x + Σ weights·D.

    The weights are over (D, D₁, D₂, D₃), newest first; for the corrector D is the evaluation at
    the step's end.
    """
    (alpha, sigma), (alpha_next, sigma_next) = levels[i], levels[i + 1]
    places = [_log_snr(*level) for level in levels[max(i - order + 1, 0) : i + 2]]
    start, end = places[-2], places[-1]
    z = start - end if predict_x_0 else end - start
    if predict_x_0:
        ratio, scale = sigma_next / sigma, alpha_next
    else:
        ratio, scale = alpha_next / alpha, sigma_next
    newest = 1 if corrector else 0
    weights = np.zeros(1 + HISTORY)
    weights[newest] = -scale * np.expm1(z)
    if z == 0 or (order == 1 and not corrector):
        return ratio, weights
    # Where the other evaluations lie, in steps from this one's start; the corrector's own at 1.
    nodes = [(places[-2 - k] - start) / (end - start) for k in range(1, order)]
    nodes += [1.0] if corrector else []
    base = np.expm1(z) if variant == "bh2" else z
    rhos = _rhos(np.array(nodes), z, base)
    for k, (node, rho) in enumerate(zip(nodes, rhos, strict=True)):
        place = 0 if corrector and k == len(nodes) - 1 else newest + 1 + k
        weights[place] -= scale * base * rho / node
        weights[newest] += scale * base * rho / node
    return ratio, weights


def _rhos(nodes, z, base):
    """Solves Σ ρₖ·nodeₖⁿ⁻¹ = n!·φₙ₊₁(z)·z… / B for n = 1 … (equation 11); one node takes ½."""
    if len(nodes) == 1:
        return [0.5]
    sides, phi, factorial = [], np.expm1(z) / z - 1, 1
    for n in range(1, len(nodes) + 1):
        sides.append(phi * factorial / base)
        factorial *= n + 1
        phi = phi / z - 1 / factorial
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(sides))


def _log_snr(alpha, sigma):
    return np.log(alpha) - np.log(sigma) if sigma > 0 else np.inf
