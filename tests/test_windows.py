"""Overlapping windows: every place covered, results put together as by a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.windows import Windows, cover, over_windows


@pytest.mark.parametrize("weighting", ["even", "ramp"])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "overlap"), [(28, 16, 4), (29, 8, 6), (9, 4, 0), (5, 8, 2)]
)
def test_windows_cover_the_axis(size, window, overlap, circular, weighting):
    made = cover(size, window, overlap, circular)
    total = np.zeros(size)
    weights = made.weights(weighting)
    assert (weights >= 0).all() and made.window == min(window, size)
    for start, own in zip(made.starts, weights, strict=True):
        assert 0 <= start < size and (circular or start + made.window <= size)
        np.add.at(total, (start + np.arange(made.window)) % size, own)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    ends = [*made.starts[1:], size + made.starts[0]] if circular else made.starts[1:]
    for start, after in zip(made.starts, ends, strict=False):
        assert len(made.starts) == 1 or start + made.window - after >= overlap


def test_two_windows_fade_into_each_other():
    assert cover(12, 8, 4).starts == (0, 4)
    first, second = cover(12, 8, 4).weights("ramp")
    np.testing.assert_allclose(first, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(second, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


@pytest.mark.parametrize("weighting", ["even", "ramp"])
@pytest.mark.parametrize("circular", [False, True])
def test_results_equal_those_of_a_plain_loop(circular, weighting):
    """Of a function that sees all its window, whose result has twice the places of an axis."""
    rows, columns = cover(12, 8, 2), cover(10, 4, 2, circular)
    x = np.random.default_rng(0).normal(size=(2, 12, 10, 3)).astype(np.float32)
    wide = np.repeat(x, 2, axis=2)

    def function(arrays):
        small, wide = arrays
        return jnp.repeat(small, 2, axis=2) * small.mean(axis=(1, 2), keepdims=True) + wide

    made = jax.jit(lambda a: over_windows(function, a, (rows, columns), weighting))((x, wide))
    expected = np.zeros((2, 12, 20, 3))
    for top, down in zip(rows.starts, rows.weights(weighting), strict=True):
        across = columns.times(2).weights(weighting)
        for left, right in zip(columns.starts, across, strict=True):
            y, place = top + np.arange(8), (left + np.arange(4)) % 10
            after = (2 * left + np.arange(8)) % 20
            part = function((x[:, y][:, :, place], wide[:, y][:, :, after]))
            expected[:, y[:, None], after] += (down[:, None] * right)[..., None] * part
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_one_axis_of_a_clip_and_a_whole_one():
    clip = np.random.default_rng(0).normal(size=(1, 12, 2, 2, 3)).astype(np.float32)
    made = over_windows(lambda x: 2 * x, clip, (cover(12, 5, 3),), "even")
    np.testing.assert_allclose(made, 2 * clip, atol=1e-6)
    whole = over_windows(lambda x: x.shape[1], clip, (cover(12, 16, 3),), "even")
    assert whole == 12


def test_rolling_a_ring_rolls_the_result():
    ring = cover(16, 8, 4, circular=True)
    x = np.random.default_rng(0).normal(size=(1, 16, 3)).astype(np.float32)

    def run(x):
        return over_windows(lambda part: part - part.mean(1, keepdims=True), x, (ring,), "ramp")

    np.testing.assert_allclose(run(np.roll(x, 4, 1)), np.roll(run(x), 4, 1), atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(sdjax.SdjaxError, match="windows of 8 cannot overlap by 8"):
        cover(16, 8, 8)
    with pytest.raises(sdjax.SdjaxError, match="do not fall on them"):
        over_windows(lambda x: x[:, ::2], np.ones((1, 9, 2)), (Windows(9, 5, (0, 4)),), "even")
