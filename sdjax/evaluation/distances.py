"""Distances between two sets of feature vectors, in float64 NumPy.

Each takes arrays [N, D] of any real dtype, N images with D features, and says nothing of how the
features were made; see `sdjax.evaluation.features`.
"""

import numpy as np

from sdjax.errors import SdjaxError

_BLOCK = 1024  # rows of a pairwise matrix held at once


def frechet_distance(real, generated):
    """Fréchet distance of Gaussians fitted to two feature sets (FID, arXiv 1706.08500).

    |m₁ − m₂|² + tr(C₁ + C₂ − 2(C₁C₂)^½) with unbiased covariances; a float, 0 for equal sets. It is
    biased upwards by few images: compare only numbers made from equally many. At least two rows a
    set are needed.
    """
    real, generated = _sets(real, generated, least=2)
    roots = []
    for x in (real, generated):
        # R of a QR factorisation is a root of the covariance that never squares its condition.
        roots.append(np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1))
    return _frechet(real.mean(0), roots[0], generated.mean(0), roots[1])


def frechet_distance_of_gaussians(mean_1, covariance_1, mean_2, covariance_2):
    """The same from means [D] and covariances [D, D], which may be singular."""
    roots = []
    for covariance in (covariance_1, covariance_2):
        values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
        if values[0] < -1e-6 * max(values[-1], 0.0):
            raise SdjaxError(f"covariance is not positive semi-definite: eigenvalue {values[0]:g}")
        roots.append(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)
    return _frechet(np.asarray(mean_1, np.float64), roots[0],
                    np.asarray(mean_2, np.float64), roots[1])


def _frechet(mean_1, root_1, mean_2, root_2):
    # With Cᵢ = RᵢᵀRᵢ, tr (C₁C₂)^½ is the sum of the singular values of R₁R₂ᵀ: no square root of a
    # product that is neither symmetric nor safely positive.
    cross = np.linalg.svd(root_1 @ root_2.T, compute_uv=False).sum()
    trace = np.square(root_1).sum() + np.square(root_2).sum() - 2 * cross
    return float(max(np.square(mean_1 - mean_2).sum() + trace, 0.0))


def precision_recall(real, generated, neighbours=3):
    """Improved precision and recall (arXiv 1904.06991): a pair of floats in 0…1.

    A set's manifold is the union of balls around its points, each reaching to the point's k-th
    nearest neighbour in its own set. Precision is the share of generated points within the real
    manifold, recall the share of real points within the generated one.
    """
    real, generated = _sets(real, generated, least=neighbours + 1)
    origin = real.mean(0)  # distances come from squared norms, so large means would cost digits
    real, generated = real - origin, generated - origin
    radii_real, radii_generated = (_radii(x, neighbours) for x in (real, generated))
    precision, recall = [], np.zeros(len(real), bool)
    for rows in _blocks(generated):
        distances = squared_distances(generated[rows], real)
        precision.append((distances <= radii_real).any(1))
        recall |= (distances <= radii_generated[rows, None]).any(0)
    return float(np.concatenate(precision).mean()), float(recall.mean())


def kernel_distance(real, generated, subset_size=1000, subsets=100, seed=0):
    """Kernel distance (KID, arXiv 1801.01401): mean and standard error over random subsets.

    The unbiased estimate of the squared maximum mean discrepancy under the kernel (x·y/D + 1)³,
    drawn `subsets` times from `subset_size` images of each set (all of the smaller set where it
    has fewer). Unbiased, so it may be negative and may be compared between numbers of images.
    """
    real, generated = _sets(real, generated, least=2)
    if subset_size < 2 or subsets < 1:
        raise SdjaxError(f"subset_size ≥ 2 and subsets ≥ 1 expected, got {subset_size}, {subsets}")
    size = min(subset_size, len(real), len(generated))
    random = np.random.default_rng(seed)
    values = [
        _squared_mmd(real[random.permutation(len(real))[:size]],
                     generated[random.permutation(len(generated))[:size]])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values) / np.sqrt(subsets))


def _squared_mmd(x, y):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    within = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y))]
    return sum(within) - 2 * kernel(x, y).mean()


def squared_distances(x, y):
    """Squared Euclidean distances [N, M] of x [N, D] and y [M, D], in float64; 0 for equal rows."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None]
    distances = squares - 2 * x @ y.T
    return np.where(distances < 1e-13 * squares, 0, distances)  # what is left is rounding


def _radii(x, neighbours):
    """Squared distance of each point to its k-th nearest neighbour, itself left out."""
    radii = []
    for rows in _blocks(x):
        distances = squared_distances(x[rows], x)
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = 0
        radii.append(np.partition(distances, neighbours, axis=1)[:, neighbours])
    return np.concatenate(radii)


def _blocks(x):
    return [slice(i, min(i + _BLOCK, len(x))) for i in range(0, len(x), _BLOCK)]


def _sets(real, generated, least):
    sets = []
    for name, x in (("real", real), ("generated", generated)):
        x = np.asarray(x, np.float64)
        if x.ndim != 2 or len(x) < least:
            raise SdjaxError(f"{name} features [N, D] with N ≥ {least} expected, got {x.shape}")
        if not np.isfinite(x).all():
            raise SdjaxError(f"{name} features hold NaN or infinite values")
        sets.append(x)
    if sets[0].shape[1] != sets[1].shape[1]:
        raise SdjaxError(f"features of one length expected, got {sets[0].shape[1]} and "
                         f"{sets[1].shape[1]}")
    return sets
