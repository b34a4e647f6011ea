"""Which known picture a generated one is nearest to."""

from typing import NamedTuple

import numpy as np

from sdjax.errors import SdjaxError

from .distances import squared_distances

_BLOCK = 256


class NearestRate(NamedTuple):
    """How often the nearest known picture is one with the caption that was asked for."""

    first: float
    """Share of generated pictures whose nearest neighbour has their caption."""
    among_five: float
    """Share with their caption among the five nearest."""
    indices: np.ndarray
    """int [N, k]: the known pictures, nearest first; k is 5, or fewer where fewer are known."""
    right: np.ndarray
    """bool [N]: whether the nearest has the caption."""


def nearest(queries, references, count=1):
    """Indices [N, count] of the nearest references [M, ...] to queries [N, ...], nearest first.

    Euclidean over all axes but the first (pixels, or features); ties go to the lower index.
    """
    queries, references = (np.asarray(x, np.float64).reshape(len(x), -1)
                           for x in (queries, references))
    if queries.shape[1] != references.shape[1]:
        raise SdjaxError("pictures to compare must have one size, got "
                         f"{queries.shape[1]} and {references.shape[1]} values")
    if not 1 <= count <= len(references):
        raise SdjaxError(f"{count} nearest asked for, among {len(references)} pictures")
    origin = references.mean(0)
    references = references - origin
    found = []
    for start in range(0, len(queries), _BLOCK):
        distances = squared_distances(queries[start:start + _BLOCK] - origin, references)
        found.append(np.argsort(distances, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def nearest_rate(generated, captions, references, reference_captions):
    """Compare pictures (or features) generated for captions [N] with known captioned ones [M].

    Every caption must occur among the known ones; SdjaxError names one that does not.
    """
    if len(captions) != len(generated) or len(reference_captions) != len(references):
        raise SdjaxError("a caption a picture expected")
    known = np.asarray(reference_captions, object)
    missing = sorted(set(captions) - set(known))
    if missing:
        raise SdjaxError(f"{len(missing)} captions have no known picture, {missing[0]!r} first")
    indices = nearest(generated, references, min(5, len(references)))
    hits = known[indices] == np.asarray(captions, object)[:, None]
    return NearestRate(float(hits[:, 0].mean()), float(hits.any(1).mean()), indices, hits[:, 0])
