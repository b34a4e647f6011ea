import numpy as np
import pytest
from scipy.linalg import sqrtm

from sdjax.errors import SdjaxError
from sdjax.evaluation.distances import (
    frechet_distance, frechet_distance_of_gaussians, kernel_distance, precision_recall,
    squared_distances,
)

RANDOM = np.random.default_rng(0)


def by_definition(m1, c1, m2, c2):
    root = sqrtm(c1 @ c2)
    return np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * np.real(root))


def covariance(dimension):
    root = RANDOM.normal(size=(dimension, dimension))
    return root @ root.T / dimension + 0.1 * np.eye(dimension)


@pytest.mark.parametrize("dimension", [1, 5, 40])
def test_frechet_of_gaussians_is_the_definition(dimension):
    m1, m2 = RANDOM.normal(size=(2, dimension))
    c1, c2 = covariance(dimension), covariance(dimension)
    made = frechet_distance_of_gaussians(m1, c1, m2, c2)
    assert made == pytest.approx(by_definition(m1, c1, m2, c2), rel=1e-10)
    assert frechet_distance_of_gaussians(m2, c2, m1, c1) == pytest.approx(made, rel=1e-12)


def test_frechet_closed_forms():
    zero, one = np.zeros(3), np.eye(3)
    assert frechet_distance_of_gaussians(zero, one, zero, one) == pytest.approx(0, abs=1e-12)
    assert frechet_distance_of_gaussians(zero, one, [1, 2, 2], one) == pytest.approx(9)
    assert frechet_distance_of_gaussians(zero, 4 * one, zero, one) == pytest.approx(3)
    singular = np.diag([1.0, 0, 0])
    assert frechet_distance_of_gaussians(zero, singular, zero, np.diag([0, 1.0, 0])) == 2
    with pytest.raises(SdjaxError, match="semi-definite"):
        frechet_distance_of_gaussians(zero, -one, zero, one)


@pytest.mark.parametrize("count", [30, 400])  # fewer and more images than features
def test_frechet_of_samples(count):
    x = RANDOM.normal(size=(count, 50)) @ covariance(50) + 3
    y = RANDOM.normal(size=(count + 7, 50))
    expected = frechet_distance_of_gaussians(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    # A large common mean costs no digits.
    assert frechet_distance(x + 1e4, y + 1e4) == pytest.approx(expected, rel=1e-7)


def test_precision_recall_of_equal_and_distant_sets():
    x = RANDOM.normal(size=(60, 4))
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    assert precision_recall(np.ones((9, 4)), np.ones((5, 4))) == (1, 1)


def test_precision_recall_of_dropped_and_invented_modes():
    one, two = RANDOM.normal(size=(2, 1500, 2)) * 0.1
    both = np.concatenate([one, two + 50])
    dropped = precision_recall(both, RANDOM.normal(size=(1500, 2)) * 0.1)
    assert dropped[0] > 0.95 and 0.45 < dropped[1] < 0.5
    near = RANDOM.normal(size=(1500, 2)) * 0.1
    invented = precision_recall(one, np.concatenate([near, two - 50]))
    assert 0.45 < invented[0] < 0.5 and invented[1] > 0.95


def test_precision_recall_on_a_line():
    # Radii at k = 1 are 1, 1, 9: the balls are [-1, 1], [0, 2], [1, 19] around 0, 1, 10.
    real = np.array([[0.0], [1], [10]])
    generated = np.array([[1.5], [2.5], [19.25], [19.5]])
    precision, recall = precision_recall(real + 7, generated + 7, neighbours=1)
    assert precision == 0.5  # 1.5 and 2.5 lie within, 19.25 and 19.5 without
    assert recall == pytest.approx(1 / 3)  # only 1 lies within a ball of radius 1 around 1.5


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    x, y = RANDOM.normal(size=(2, 500, 8))
    mean, error = kernel_distance(x, y, subset_size=100, subsets=50)
    assert abs(mean) < 0.05 and error < 0.02
    shifted, _ = kernel_distance(x, y + 1, subset_size=100, subsets=50)
    assert shifted > 1
    assert kernel_distance(x, y, 100, 50) == kernel_distance(x, y, 100, 50)


def test_kernel_distance_by_hand():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]])
    # k(1,2) = 27 within x, k(0,1) = 1 within y; across 1, 8, 1, 27 with mean 37/4.
    mean, error = kernel_distance(x, y, subsets=3)
    assert mean == pytest.approx(27 + 1 - 2 * 37 / 4) and error == 0


def test_squared_distances():
    x, y = RANDOM.normal(size=(5, 3)), RANDOM.normal(size=(4, 3))
    expected = np.square(x[:, None] - y[None]).sum(-1)
    np.testing.assert_allclose(squared_distances(x, y), expected, rtol=1e-12)
    assert (np.diag(squared_distances(x * 1e3, x * 1e3)) == 0).all()


@pytest.mark.parametrize("distance", [frechet_distance, precision_recall, kernel_distance])
def test_wrong_sets_are_named(distance):
    good = np.ones((5, 2))
    for bad, said in ((np.ones((1, 2)), "N ≥"), (np.ones((5, 3)), "one length"),
                      (np.full((5, 2), np.nan), "NaN"), (np.ones((5, 2, 2)), "N, D")):
        with pytest.raises(SdjaxError, match=said):
            distance(good, bad)
