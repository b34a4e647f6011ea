"""Solvers of dx/dσ = ε at x = x_0 + σ·ε, known from k-diffusion.

Karras et al. 2022 (arXiv 2206.00364) give the form; here s and s' are the levels of a step.
"""

import numpy as np

from sdjax.diffusion.samplers.checks import check_eta, check_order
from sdjax.diffusion.tables import Row


def _steps(grid):
    """(timestep, s, s') of each step."""
    columns = (grid.timesteps, grid.ratio, grid.ratio_next)
    return [tuple(map(float, step)) for step in zip(*columns, strict=True)]


def _denoised(grid, network):
    """Row fields of an evaluation at a level, with D = x_0."""

    def evaluate(level, t=None):
        return network.evaluate(grid.timestep_at(level) if t is None else t, 1.0, level)

    return evaluate


def _sloped(grid, network):
    """Row fields of an evaluation at a level, with D = ε, the slope there."""
    evaluate = _denoised(grid, network)
    return lambda level, t=None: {
        **evaluate(level, t), "derivative": network.epsilon(1.0, level)
    }  # fmt: skip


def _churned(s, steps, churn, low, high, noise):
    """The level that noise is added up to, and the row that adds it (algorithm 2)."""
    gamma = min(churn / steps, 2**0.5 - 1) if low <= s <= high else 0.0
    if gamma <= 0:
        return s, []
    up = s * (1 + gamma)
    return up, [Row(level=(1, s), noise=noise * (up**2 - s**2) ** 0.5, interval=(up, s))]


def _ancestral(s, s_next, eta=1.0):
    """(down, up): go to `down` and add `up` of noise to be at s'.

    Where s' is above s, as at the top of a long schedule without signal at its end, a step with
    η = 1 is the forward process: x stays, and the noise that is missing is added.
    """
    check_eta(eta)
    if not eta:
        return s_next, 0.0
    if s_next > s:
        up = min(eta, 1.0) * (s_next**2 - s**2) ** 0.5
    else:
        up = min(s_next, eta * (s_next**2 * (s**2 - s_next**2) / s**2) ** 0.5)
    return (s_next**2 - up**2) ** 0.5, up


def euler(grid, network, churn=0.0, churn_min=0.0, churn_max=np.inf, churn_noise=1.0):
    """x' = x + (s' − s)·ε; with `churn`, algorithm 2 of the paper without its correction."""
    steps, evaluate = _steps(grid), _sloped(grid, network)
    rows = []
    for t, s, s_next in steps:
        up, extra = _churned(s, grid.total, churn, churn_min, churn_max, churn_noise)
        fields = evaluate(up, t if up == s else None)
        rows += [*extra, Row(**fields, x=(1, 0, s_next - up))]
    return rows


def heun(grid, network, churn=0.0, churn_min=0.0, churn_max=np.inf, churn_noise=1.0):
    """Algorithm 2: an Euler step, then the mean of the slopes at its ends; not to level zero."""
    steps, evaluate = _steps(grid), _sloped(grid, network)
    rows = []
    for i, (t, s, s_next) in enumerate(steps):
        up, extra = _churned(s, grid.total, churn, churn_min, churn_max, churn_noise)
        fields = evaluate(up, t if up == s else None)
        rows += [*extra, Row(**fields, x=(1, 0, s_next - up), y=(1,))]
        if s_next > 0:
            half = (s_next - up) / 2
            t_next = steps[i + 1][0] if i + 1 < len(steps) else None
            rows.append(Row(**evaluate(s_next, t_next), x=(0, 1, half, half)))
    return rows


def euler_a(grid, network, eta=1.0):
    """Euler down to less than s', then noise up to it."""
    steps, evaluate = _steps(grid), _sloped(grid, network)
    rows = []
    for t, s, s_next in steps:
        down, up = _ancestral(s, s_next, eta)
        rows.append(
            Row(**evaluate(s, t), x=(1, 0, down - s), noise=up, interval=(s, s_next))
        )
    return rows


def dpm2(grid, network, eta=0.0):
    """DPM-Solver-2 in σ: the slope halfway to s' in log σ (arXiv 2206.00927, algorithm 1).

    Args:
      eta: 1 gives the ancestral sampler, which goes down further and adds noise.
    """
    steps, evaluate = _steps(grid), _sloped(grid, network)
    rows = []
    for t, s, s_next in steps:
        down, up = _ancestral(s, s_next, eta)
        if down == 0:
            rows.append(Row(**evaluate(s, t), x=(1, 0, -s)))
            continue
        middle = (s * down) ** 0.5
        # diffusers computes them in float32, where most digits of the lower level cancel.
        down, up = map(float, _ancestral(np.float32(s), np.float32(s_next), np.float32(eta)))
        rows += [
            Row(**evaluate(s, t), x=(1, 0, middle - s), y=(1,)),
            Row(**evaluate(middle), x=(0, 1, down - s), noise=up, interval=(s, s_next)),
        ]
    return rows


def dpm2_a(grid, network, eta=1.0):
    """`dpm2` with noise: see there."""
    return dpm2(grid, network, eta)


def lms(grid, network, order=4, warm_up=True):
    """Linear multistep: the polynomial through the last slopes, integrated from s to s'.

    Args:
      order: slopes used, up to 4.
      warm_up: raise the order from 1 where steps were left out at the beginning. Without, the
        weights are those of the full order with the missing slopes taken as zero (diffusers).
    """
    check_order(order, highest=4)
    steps, evaluate = _steps(grid), _sloped(grid, network)
    levels = np.append(grid.left_out, grid.ratio)
    rows = []
    for i, (t, s, s_next) in enumerate(steps):
        place = grid.first + i
        count = min(order, i + 1 if warm_up else place + 1)
        nodes = [levels[place - k] for k in range(count)]
        weights = [_integral_of_basis(nodes, k, s, s_next) for k in range(count)]
        rows.append(Row(**evaluate(s, t), x=(1, 0, *weights[: i + 1])))
    return rows


def _integral_of_basis(nodes, k, start, end):
    """∫ of the Lagrange polynomial that is 1 at nodes[k] and 0 at the others."""
    basis = np.poly1d([1.0])
    for j, node in enumerate(nodes):
        if j != k:
            basis *= np.poly1d([1.0, -node]) / (nodes[k] - node)
    area = basis.integ()
    return float(area(end) - area(start))


def dpmpp_sde(grid, network, eta=1.0, noise=1.0):
    """DPM-Solver++ (stochastic), two evaluations a step, the first ones to the middle in log σ."""
    evaluate = _denoised(grid, network)
    rows = []
    for t, s, s_next in _steps(grid):
        if s_next == 0:
            rows.append(Row(**evaluate(s, t), x=(0, 0, 1)))
            continue
        middle = (s * s_next) ** 0.5
        down, up = _ancestral(s, middle, eta)
        rows.append(
            Row(
                **evaluate(s, t),
                x=(down / s, 0, 1 - down / s),
                y=(1,),
                noise=noise * up,
                interval=(s, middle),
            )
        )
        down, up = _ancestral(s, s_next, eta)
        rows.append(
            Row(
                **evaluate(middle),
                x=(0, down / s, 1 - down / s),
                noise=noise * up,
                interval=(s, s_next),
            )
        )
    return rows


def dpmpp_2s_a(grid, network, eta=1.0, noise=1.0):
    """DPM-Solver++(2S) with ancestral noise: x_0 halfway to the lower level, in log σ."""
    evaluate = _denoised(grid, network)
    rows = []
    for t, s, s_next in _steps(grid):
        down, up = _ancestral(s, s_next, eta)
        if down == 0:
            rows.append(Row(**evaluate(s, t), x=(0, 0, 1)))
            continue
        middle = (s * down) ** 0.5
        rows += [
            Row(**evaluate(s, t), x=(middle / s, 0, 1 - middle / s), y=(1,)),
            Row(
                **evaluate(middle),
                x=(0, down / s, 1 - down / s),
                noise=noise * up,
                interval=(s, s_next),
            ),
        ]
    return rows
