"""DPM-Solver and DPM-Solver++: exponential integrators in λ = log(α/σ).

Lu et al. 2022 (arXiv 2206.00927, arXiv 2211.01095). With h = λ' − λ, the data form (++) and the
noise form are both

    x' = ratio·x − weight·(E₀·D₀ + E₁·D₁ + E₂·D₂) + noise,    E₀ = eᶻ − 1

where D₀ is the last x_0 (or ε), D₁ and D₂ are its divided differences, and z is −h or h.
"""

import numpy as np

from sdjax.diffusion.samplers.checks import check_eta, check_order
from sdjax.diffusion.tables import Row
from sdjax.errors import SdjaxError

STOCHASTIC = ("sde_dpmpp", "sde_dpm")
ALGORITHMS = ("dpmpp", "dpm", *STOCHASTIC)


def _log_snr(alpha, sigma):
    return np.log(alpha) - np.log(sigma) if sigma > 0 else np.inf


def _integrator(algorithm, start, end, eta):
    """(ratio, weight, z, noise) of a step between two levels (α, σ)."""
    (alpha, sigma), (alpha_next, sigma_next) = start, end
    h = _log_snr(*end) - _log_snr(*start)
    if h < 0 and algorithm in STOCHASTIC:
        return _noised_up(algorithm, start, end, h, eta)
    match algorithm:
        case "dpmpp":
            return sigma_next / sigma, alpha_next, -h, 0.0
        case "dpm":
            return alpha_next / alpha, sigma_next, h, 0.0
        case "sde_dpmpp":  # η = 1 solves the reverse SDE, η = 0 the ODE
            noise = sigma_next * (-np.expm1(-2 * eta * h)) ** 0.5 if eta else 0.0
            decay = np.exp(-eta * h) if eta else 1.0
            return sigma_next / sigma * decay, alpha_next, -(1 + eta) * h, noise
        case "sde_dpm":
            noise = sigma_next * np.expm1(2 * h) ** 0.5
            return alpha_next / alpha, 2 * sigma_next, h, noise
    raise SdjaxError(
        f"unknown algorithm {algorithm!r}: expected one of {', '.join(ALGORITHMS)}"
    )


def _noised_up(algorithm, start, end, h, eta):
    """`_integrator` of a stochastic step to more noise: with η = 1 it is the forward process.

    Schedules without signal at their end have such a step there, of which x_0 and ε say nothing.
    """
    (alpha, sigma), (alpha_next, sigma_next) = start, end
    ratio = alpha_next / alpha
    noise = (sigma_next**2 - (ratio * sigma) ** 2) ** 0.5
    if algorithm == "sde_dpm" or eta >= 1:
        return ratio, 0.0, h, noise
    down = (sigma_next**2 - (eta * noise) ** 2) ** 0.5
    return down / sigma, alpha_next, np.log(down / (sigma * ratio)), eta * noise


def _weights(z, order, solver, second_shift=0.0):
    """E₀, E₁ and E₂ up to the order."""
    e_0 = np.expm1(z)
    if order == 1:
        return (e_0,)
    if order == 2:
        return e_0, e_0 / 2 if solver == "midpoint" else e_0 / z - 1
    return e_0, e_0 / z - 1, (e_0 - z) / z**2 - 0.5 + second_shift


def _fields(grid, network, i, algorithm):
    t, alpha, sigma, alpha_next, sigma_next = grid[i]
    fields = network.evaluate(t, alpha, sigma)
    if algorithm in ("dpm", "sde_dpm"):
        if sigma_next == 0:
            raise SdjaxError(f"algorithm {algorithm!r} cannot end at zero: set final='sigma_min'")
        fields["derivative"] = network.epsilon(alpha, sigma)
    return fields, (alpha, sigma), (alpha_next, sigma_next)


def _check(grid, order, algorithm, solver, eta):
    if algorithm in STOCHASTIC and grid.inverse:
        raise SdjaxError(f"algorithm {algorithm!r} adds noise: from data to noise take dpmpp or dpm")
    check_order(order)
    check_eta(eta)
    if solver not in ("midpoint", "heun"):
        raise SdjaxError(f"unknown solver {solver!r}: expected midpoint or heun")


def multistep(
    grid, network, order=2, algorithm="dpmpp", solver="midpoint", eta=1.0,
    lower_order_final=True, euler_at_final=False, published=True,
):  # fmt: skip
    """One evaluation a step, differences from the steps before (arXiv 2211.01095, algorithm 2).

    Args:
      order: 1 to 3.
      algorithm: "dpmpp" (x_0), "dpm" (ε), or their stochastic forms "sde_dpmpp" and "sde_dpm".
      solver: how the second order weighs its difference, "midpoint" or "heun".
      eta: noise of "sde_dpmpp".
      lower_order_final: end with a lower order where there are fewer than 15 steps.
      euler_at_final: end with the first order. A last level of zero always does.
      published: E₂ of the third-order "sde_dpmpp" as k-diffusion has it; diffusers' is larger by 1.
    """
    _check(grid, order, algorithm, solver, eta)
    lower = lower_order_final and grid.total < 15
    shift = 0.0 if published or algorithm != "sde_dpmpp" else 1.0
    lambdas = [_log_snr(*grid[i][1:3]) for i in range(len(grid))]
    rows, oldest = [], 0
    for i in range(len(grid)):
        fields, start, end = _fields(grid, network, i, algorithm)
        # Noise has been added since a step up: what was predicted before is of another x.
        if i > 0 and algorithm in STOCHASTIC and lambdas[i] < lambdas[i - 1]:
            oldest = i
        use = min(order, i - oldest + 1)
        left = len(grid) - i
        if left == 1 and (lower or euler_at_final or end[1] == 0):
            use = 1
        elif left == 2 and lower:
            use = min(use, 2)
        ratio, weight, z, noise = _integrator(algorithm, start, end, eta)
        h = _log_snr(*end) - lambdas[i]
        use = 1 if h == 0 else use
        differences = [np.array([1.0, 0, 0])]
        if use > 1:
            newest = np.array([1.0, -1, 0]) * h / (lambdas[i] - lambdas[i - 1])
            differences.append(newest)
        if use > 2:
            if algorithm == "sde_dpm":
                raise SdjaxError("sde_dpm has orders 1 and 2, got 3")
            r_0 = (lambdas[i] - lambdas[i - 1]) / h
            r_1 = (lambdas[i - 1] - lambdas[i - 2]) / h
            change = newest - np.array([0, 1.0, -1]) / r_1
            differences[1:] = [newest + r_0 / (r_0 + r_1) * change, change / (r_0 + r_1)]
        terms = zip(_weights(z, use, solver, shift), differences, strict=True)
        combined = -weight * sum(e * difference for e, difference in terms)
        rows.append(
            Row(
                **fields,
                x=(ratio, 0, *combined),
                noise=noise,
                interval=(grid.ratio[i], grid.ratio_next[i]),
            )
        )
    return rows


def singlestep_orders(steps, order, lower_order_final):
    """Orders of the updates: 1, 2, … up to `order`, again and again, lower at the end."""
    if not lower_order_final:
        return list(range(1, order + 1)) * (steps // order)
    if order == 3:
        whole, rest = divmod(steps, 3)
        return [1, 2, 3] * (whole - (rest == 0)) + [[1, 2, 1], [1], [1, 2]][rest]
    if order == 2:
        return [1, 2] * ((steps - 1) // 2) + [1] * (2 - steps % 2)
    return [1] * steps


def singlestep(
    grid, network, order=2, algorithm="dpmpp", solver="midpoint", eta=1.0,
    lower_order_final=None, published=True,
):  # fmt: skip
    """Orders rise within a group of evaluations that all start from its first sample, y.

    arXiv 2206.00927, algorithms 1 and 2; arXiv 2211.01095, algorithm 1. A step is an evaluation.

    Args: as of `multistep`; without `lower_order_final` the step count must be a multiple of the
      order, and that ends at a level above zero. By default it is on where it has to be.
    """
    _check(grid, order, algorithm, solver, eta)
    if algorithm == "sde_dpm":
        raise SdjaxError("the singlestep solver has dpmpp, dpm and sde_dpmpp, got 'sde_dpm'")
    if grid.total % order or grid.sigma_next[-1] == 0:
        lower_order_final = True
    orders = singlestep_orders(grid.total, order, bool(lower_order_final))
    if grid.sigma_next[-1] == 0:
        orders[-1] = 1
    shift = 0.0 if published or algorithm != "sde_dpmpp" else 1.0
    rows = []
    for i in range(len(grid)):
        fields, _, end = _fields(grid, network, i, algorithm)
        use = min(orders[grid.first + i], i + 1)
        origin = i - use + 1
        level = grid[origin][1:3]
        ratio, weight, z, noise = _integrator(algorithm, level, end, eta)
        h = _log_snr(*end) - _log_snr(*level)
        combined = [np.eye(3)[use - 1]]  # D₀ is the group's first prediction
        weights = list(_weights(z, use, solver, shift))
        if use == 2:
            r = (_log_snr(*grid[i][1:3]) - _log_snr(*level)) / h
            combined.append(np.array([1.0, -1, 0]) / r)
        elif use == 3:
            r_0, r_1 = ((_log_snr(*grid[j][1:3]) - _log_snr(*level)) / h for j in (i, i - 1))
            near, far = np.array([0, 1.0, -1]) / r_1, np.array([1.0, 0, -1]) / r_0
            if solver == "midpoint":
                combined, weights = [*combined, far], weights[:2]
            else:
                combined.append((r_0 * near - r_1 * far) / (r_0 - r_1))
                combined.append(2 * (far - near) / (r_0 - r_1))
        terms = zip(weights, combined, strict=True)
        combined = -weight * sum(e * difference for e, difference in terms)
        rows.append(
            Row(
                **fields,
                x=(ratio, 0, *combined) if use == 1 else (0, ratio, *combined),
                y=(1,) if use == 1 else (0, 1),
                noise=noise,
                interval=(grid.ratio[origin], grid.ratio_next[i]),
            )
        )
    return rows
