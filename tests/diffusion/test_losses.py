"""Losses, weights, the variational bound and learned variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sdjax import diffusion
from sdjax.diffusion import variational
from sdjax.errors import SdjaxError

SCHEDULE = diffusion.linear_schedule(num_timesteps=100, beta_end=0.1)


@pytest.mark.parametrize(
    ("kind", "of_error"),
    [
        ("mse", lambda e: e**2),
        ("l1", np.abs),
        ("huber", lambda e: np.where(np.abs(e) < 0.5, e**2 / 2, 0.5 * (np.abs(e) - 0.25))),
        ("pseudo_huber", lambda e: np.sqrt(e**2 + 0.25) - 0.5),
    ],
)
def test_losses(kind, of_error):
    error = np.linspace(-2, 2, 24).reshape(2, 3, 4).astype(np.float32)
    got = diffusion.training_loss(jnp.asarray(error), jnp.zeros((2, 3, 4)), kind, delta=0.5)
    np.testing.assert_allclose(got, of_error(error).mean(axis=(1, 2)), 1e-6)
    assert got.dtype == jnp.float32


def test_losses_refuse_what_they_do_not_know():
    with pytest.raises(SdjaxError, match="differ in shape"):
        diffusion.training_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    with pytest.raises(SdjaxError, match="unknown loss"):
        diffusion.training_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), "l3")
    with pytest.raises(SdjaxError, match="unknown weighting"):
        diffusion.loss_weight(SCHEDULE, jnp.zeros(1, int), "epsilon", "max_snr")


def test_weights():
    t = jnp.array([0, 10, 50, 99])
    snr = np.exp(np.asarray(SCHEDULE.log_snr, np.float64))[np.asarray(t)]
    clipped = np.minimum(snr, 5)
    for kind, expected in {
        "x_0": clipped,
        "epsilon": clipped / snr,
        "v_prediction": clipped / (snr + 1),
    }.items():
        weight = diffusion.loss_weight(SCHEDULE, t, kind, "min_snr")
        np.testing.assert_allclose(weight, expected, 1e-4)
        np.testing.assert_array_equal(diffusion.loss_weight(SCHEDULE, t, kind), np.ones(4))
    p2 = diffusion.loss_weight(SCHEDULE, t, "epsilon", "p2", gamma=0.5, k=2.0)
    np.testing.assert_allclose(p2, 1 / np.sqrt(2 + snr), 1e-4)


def test_weighted_losses_of_all_kinds_are_one_loss():
    """The same error in x_0, seen as ε or v, has the same weighted loss."""
    t, error = jnp.array([5, 40, 90]), jnp.array([[0.1], [0.2], [0.3]])
    alpha, sigma = (
        table[t][:, None]
        for table in (SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod)
    )
    errors = {"x_0": error, "epsilon": alpha / sigma * error, "v_prediction": error / sigma}
    for weighting in ("min_snr", "p2"):
        losses = [
            diffusion.loss_weight(SCHEDULE, t, kind, weighting)
            * diffusion.training_loss(seen, jnp.zeros_like(seen))
            for kind, seen in errors.items()
        ]
        np.testing.assert_allclose(losses[1], losses[0], 1e-4)
        np.testing.assert_allclose(losses[2], losses[0], 1e-4)


def test_weights_are_finite_without_signal():
    zero = diffusion.zero_terminal_snr(SCHEDULE)
    for kind in ("x_0", "epsilon", "v_prediction"):
        for weighting in ("min_snr", "p2"):
            weight = diffusion.loss_weight(zero, jnp.array([99]), kind, weighting)
            assert np.isfinite(weight).all()


def test_normal_kl():
    """Against the integral."""
    mean_1, std_1, mean_2, std_2 = 0.3, 0.7, -0.5, 1.4
    x = np.linspace(-12, 12, 200001)
    p, q = stats.norm(mean_1, std_1).pdf(x), stats.norm(mean_2, std_2).pdf(x)
    integral = np.trapezoid(np.where(p > 0, p * (np.log(p + 1e-300) - np.log(q)), 0), x)
    got = variational.normal_kl(mean_1, 2 * np.log(std_1), mean_2, 2 * np.log(std_2))
    np.testing.assert_allclose(got, integral, 1e-5)


def test_discretized_gaussian_sums_to_one_and_matches_scipy():
    pixels = np.arange(256) / 127.5 - 1
    for mean, std in ((0.1, 0.05), (-0.98, 0.3), (0.0, 2.0), (0.9, 0.01)):
        log_p = variational.discretized_gaussian_log_likelihood(
            jnp.asarray(pixels, jnp.float32), mean, 2 * np.log(std)
        )
        np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=2e-4)
        upper = np.append(pixels[:-1] + 1 / 255, np.inf)
        lower = np.append(-np.inf, pixels[1:] - 1 / 255)
        normal = stats.norm(mean, std)
        # The interval measured in the tail that it lies in, where float64 resolves it.
        p = np.where(
            pixels > mean, normal.sf(lower) - normal.sf(upper), normal.cdf(upper) - normal.cdf(lower)
        )
        seen = p > 1e-30
        np.testing.assert_allclose(np.asarray(log_p)[seen], np.log(p[seen]), rtol=2e-3, atol=2e-3)
        assert np.isfinite(log_p).all()


def test_perfect_predictions_leave_the_decoder_and_the_prior():
    """With the true x_0 every KL is zero, and the last step is a Gaussian around x_0."""
    x_0 = (jax.random.randint(jax.random.key(1), (2, 5, 5, 3), 0, 256) / 127.5 - 1).astype(
        jnp.float32
    )
    bound = variational.variational_bound(
        lambda x, t: x_0, SCHEDULE, x_0, jax.random.key(0), "x_0"
    )
    np.testing.assert_allclose(bound["terms"][:, 1:], 0, atol=1e-5)
    log_variance = float(SCHEDULE.posterior_log_variance[0])
    decoder = variational.discretized_gaussian_log_likelihood(x_0, x_0, log_variance)
    np.testing.assert_allclose(
        bound["terms"][:, 0], -decoder.mean(axis=(1, 2, 3)) / np.log(2), 1e-4
    )
    signal = float(SCHEDULE.alphas_cumprod[-1])
    prior = 0.5 * (signal * x_0**2 - signal - np.log(1 - signal)).mean(axis=(1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(bound["prior"], prior, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(bound["total"], bound["terms"].sum(1) + bound["prior"], 1e-6)


def test_term_of_a_wrong_prediction_has_its_closed_form():
    """KL of two Gaussians of one variance: half the squared distance of their means."""
    t, x_0, offset = jnp.array([30, 60]), jnp.full((2, 4), 0.25), 0.1
    x_t = diffusion.add_noise(SCHEDULE, x_0, jnp.ones((2, 4)), t)
    got = variational.variational_term(SCHEDULE, x_0 + offset, x_0, x_t, t, "x_0")
    coefficient, variance = SCHEDULE.posterior_mean_coef_x_0[t], SCHEDULE.posterior_variance[t]
    np.testing.assert_allclose(got, (coefficient * offset) ** 2 / 2 / variance / np.log(2), 1e-3)


def test_learned_variance_lies_between_its_ends():
    t = jnp.array([1, 50])
    low, high = SCHEDULE.posterior_log_variance[t], jnp.log(SCHEDULE.betas[t])
    for fraction, expected in ((0.0, low), (1.0, high), (0.5, (low + high) / 2)):
        got = variational.learned_log_variance(SCHEDULE, t, jnp.full((2, 3), fraction))
        np.testing.assert_allclose(got, expected[:, None].repeat(3, 1), 1e-5)


def test_hybrid_loss_teaches_the_variance_and_leaves_the_mean():
    key = jax.random.key(0)
    x_0, noise = jax.random.normal(key, (2, 6)) / 4, jax.random.normal(jax.random.key(1), (2, 6))
    t = jnp.array([20, 70])
    x_t = diffusion.add_noise(SCHEDULE, x_0, noise, t)

    def loss(prediction, fraction, weight):
        return variational.hybrid_loss(
            SCHEDULE, prediction, fraction, noise, x_0, x_t, t, "epsilon", weight
        ).sum()

    prediction, fraction = noise + 0.1, jnp.full((2, 6), 0.5)
    of_mean, of_fraction = jax.grad(loss, (0, 1))(prediction, fraction, 0.001)
    simple = jax.grad(lambda p: diffusion.training_loss(p, noise).sum())(prediction)
    np.testing.assert_allclose(of_mean, simple, rtol=1e-5)
    assert np.all(of_fraction != 0)
    best = jax.jit(jax.grad(loss, 1))
    for _ in range(300):
        fraction = fraction - 0.5 * best(prediction, fraction, 0.001)
    assert loss(prediction, fraction, 1.0) < loss(prediction, jnp.full((2, 6), 0.5), 1.0)


def test_bound_prefers_the_true_variance():
    """Of data N(0, 1) the reverse steps have variance β, the upper end of the range."""
    x_0 = jax.random.normal(jax.random.key(2), (1, 8000))

    def terms(fraction):
        def denoise(x, t):
            return SCHEDULE.sqrt_alphas_cumprod[t][:, None] * x, jnp.full_like(x, fraction)

        bound = variational.variational_bound(
            denoise, SCHEDULE, x_0, jax.random.key(0), "x_0", clip=None
        )
        return np.asarray(bound["terms"])[0, 1:]

    best, middle, worst = terms(1.0), terms(0.5), terms(0.0)
    assert (best <= middle + 1e-6).all() and (middle <= worst + 1e-6).all()
    # KL(posterior ‖ reverse step) averaged over the data: ½·log(β/β̃).
    expected = 0.5 * np.log2(SCHEDULE.betas / SCHEDULE.posterior_variance)[1:]
    np.testing.assert_allclose(best, expected, rtol=0.05, atol=2e-4)
