"""How a table turns what a network predicts into x_0 and ε at a noise level."""

import dataclasses

import numpy as np

from sdjax.diffusion.predictions import prediction_coefficients

# Where no signal is left, ε says nothing about x_0; where no noise is left, x_0 nothing about ε.
# Clipped, x_0 is at its bounds for any x − ε that float32 tells from zero, as in the limit.
LEAST_SIGNAL, LEAST_NOISE = 2.0**-24, 2.0**-12


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that sees unit variance; x = α·x_0 + σ·ε may have any.

    Attributes:
      prediction: what is predicted, a name of `predictions.PREDICTIONS`.
      bounded: x_0 is clipped, so that ε has to follow from it.
    """

    prediction: str
    bounded: bool = False

    def _coefficients(self, alpha, sigma):
        size = np.hypot(alpha, sigma)
        alpha, sigma = alpha / size, sigma / size
        if self.prediction in ("epsilon", "score"):
            alpha = alpha or LEAST_SIGNAL
        if self.prediction == "x_0":
            sigma = sigma or LEAST_NOISE
        p, q, e, f = prediction_coefficients(self.prediction, alpha, sigma)
        return 1 / size, p / size, q, e / size, f

    def evaluate(self, timestep, alpha, sigma):
        """The fields of a `Row` that evaluates at this level."""
        scale, p, q, _, _ = self._coefficients(alpha, sigma)
        # Where both terms are large and cancel, rounding is least with one factor outside.
        outer = p if self.prediction in ("epsilon", "score") else 1.0
        return {
            "timestep": timestep,
            "level": (alpha, sigma),
            "input_scale": scale,
            "x_0": (outer, p / outer, q / outer),
        }

    def epsilon(self, alpha, sigma):
        """(u, v, w) of ε = u·x + v·x_0 + w·prediction."""
        if self.bounded:
            return 1 / sigma, -alpha / sigma, 0.0
        return self.raw_epsilon(alpha, sigma)

    def raw_epsilon(self, alpha, sigma):
        """ε as predicted, whatever bounds are put on x_0."""
        _, _, _, e, f = self._coefficients(alpha, sigma)
        return e, 0.0, f


@dataclasses.dataclass(frozen=True)
class PreconditionedNetwork:
    """A network of Karras et al. 2022 (arXiv 2206.00364, equation 7) at x = x_0 + σ·ε.

        x_0 = c_skip·x + c_out·prediction,   c_skip = d²/(σ² + d²),   c_out = ±σd/√(σ² + d²)

    with d = `sigma_data`; c_out is negative where the prediction is "v_prediction". Above a
    `boundary`, σ − boundary takes the place of σ in the numerators and in c_skip, so that x_0 is x
    at the boundary (consistency models, Song et al. 2023, arXiv 2303.01469, appendix C).
    """

    prediction: str
    sigma_data: float = 0.5
    boundary: float = 0.0

    def evaluate(self, timestep, alpha, sigma):
        d, above = self.sigma_data, sigma - self.boundary
        size = np.hypot(sigma, d)
        sign = -1 if self.prediction == "v_prediction" else 1
        x_0 = (1.0, d**2 / (above**2 + d**2), sign * above * d / size)
        if self.prediction == "x_0":
            x_0 = (1.0, 0.0, 1.0)
        return {
            "timestep": timestep,
            "level": (alpha, sigma),
            "input_scale": 1 / size,
            "x_0": x_0,
        }

    def epsilon(self, alpha, sigma):
        return 1 / sigma, -1 / sigma, 0.0


def unit_variance(prediction, bounded):
    return Network(prediction, bounded)


def preconditioned(prediction, bounded, sigma_data=0.5):
    return PreconditionedNetwork(prediction, sigma_data)


def consistency_model(prediction, bounded, sigma_data=0.5, sigma_min=0.002):
    return PreconditionedNetwork(prediction, sigma_data, sigma_min)
