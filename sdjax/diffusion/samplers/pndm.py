"""Pseudo numerical methods: DDIM steps with Adams–Bashforth combinations of ε."""

from sdjax.diffusion.grids import SMALLEST_SIGNAL
from sdjax.diffusion.tables import Row
from sdjax.errors import SdjaxError

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(grid, network, runge_kutta=False, trial_counts=False):
    """Liu et al. 2022 (arXiv 2202.09778), equations 11 to 13 and 23.

    The first steps are a pseudo improved Euler step (two evaluations; Stable Diffusion's), or with
    `runge_kutta` three Runge–Kutta steps of four evaluations, as in the paper. With v-prediction
    v is what is combined. trial_counts: the grid has the trial's timestep, see `pndm_grid`.
    """
    signal, stride = grid.signal, grid.stride

    def level(t):
        found = signal[min(t, len(signal) - 1)] if t >= 0 else grid.final_signal
        return found or SMALLEST_SIGNAL

    raw = network.prediction == "v_prediction"

    def evaluate(t):
        alpha, sigma = level(t) ** 0.5, (1 - level(t)) ** 0.5
        derivative = (0.0, 0.0, 1.0) if raw else network.epsilon(alpha, sigma)
        return {**network.evaluate(t, alpha, sigma), "derivative": derivative}

    def transfer(t, t_next):
        """(A, B) of x' = A·x + B·D, equation 11."""
        a, b = level(t), level(t_next)
        of_x = (b / a) ** 0.5
        of_epsilon = (a - b) / (a * (1 - b) ** 0.5 + (a * (1 - a) * b) ** 0.5)
        if raw:  # ε = √ᾱ·v + √(1 − ᾱ)·x
            return of_x + of_epsilon * (1 - a) ** 0.5, of_epsilon * a**0.5
        return of_x, of_epsilon

    times = [int(t) for t in grid.timesteps]
    if runge_kutta:
        if len(times) < 4:
            raise SdjaxError(f"plms with Runge–Kutta steps needs 4 steps or more, got {len(times)}")
        rows = []
        for t, t_next in zip(times[:3], times[1:4], strict=True):
            rows += _runge_kutta(t, t_next, stride // 2, evaluate, transfer)
        known, times = 3, times[3:]
    else:
        rows, known = [], 0
        times = times if trial_counts else [*times[:2], *times[1:]]
    for i, t in enumerate(times):
        if i == 1 and not runge_kutta:
            # The step just taken was a trial: again from its start, with the mean of both ends.
            of_x, of_d = transfer(t + stride, t)
            rows.append(Row(**evaluate(t), x=(0, of_x, of_d / 2, of_d / 2), remember=False))
            continue
        of_x, of_d = transfer(t, t - stride)
        weights = tuple(of_d * weight for weight in ADAMS_BASHFORTH[min(known, 3)])
        rows.append(Row(**evaluate(t), x=(of_x, 0, *weights), y=(1,)))
        known += 1
    return rows


def _runge_kutta(t, t_next, half, evaluate, transfer):
    """One step of four evaluations; only the first is remembered (equation 13)."""
    middle = t_next + half
    first, (a, b), (a_end, b_end) = (transfer(t, goal) for goal in (t - half, middle, t_next))
    return [
        Row(**evaluate(t), x=(first[0], 0, first[1]), y=(1,)),
        Row(**evaluate(middle), x=(0, a, b), remember=False),
        # x = a·y + b·D₂ gives D₂ back: y becomes the end without its last term.
        Row(
            **evaluate(middle),
            x=(0, a_end, b_end),
            y=(b_end / b / 3, a_end - b_end / b / 3 * a, b_end / 3, b_end / 6),
            remember=False,
        ),
        Row(**evaluate(t_next), x=(0, 1, b_end / 6), remember=False),
    ]


def ipndm(grid, network, known=0):
    """Zhang & Chen 2022 (arXiv 2204.13902, section 4): no warm-up, the order rises to four.

        x' = α'/α·(x − σ·e) + σ'·e

    Args:
      known: predictions that an earlier run has left.
    """
    rows = []
    for i in range(len(grid)):
        t, alpha, sigma, alpha_next, sigma_next = grid[i]
        # From pure noise x is ε: nothing is left for x_0, unless older predictions say otherwise.
        of_x = alpha_next / max(alpha, 1e-8) if alpha > 0 or known else 0.0
        of_epsilon = sigma_next - of_x * sigma
        weights = ADAMS_BASHFORTH[min(i + known, 3)]
        rows.append(
            Row(
                **network.evaluate(t, alpha, sigma),
                derivative=network.epsilon(alpha, sigma),
                x=(of_x, 0, *(of_epsilon * weight for weight in weights)),
            )
        )
    return rows

