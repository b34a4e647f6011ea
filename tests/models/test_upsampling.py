"""The convolution after an upsampling, against the upsampling and the convolution one by one."""

import jax
import numpy as np
import pytest

from sdjax.models.layers import UpsampleConv, convolve, convolve_upsampled, upsample_nearest


def plainly(x, kernel):
    return convolve(upsample_nearest(x), kernel, ((1, 1), (1, 1)))


def arrays(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, 5, 4, 3)).astype(np.float32)
    return x, random.normal(size=(3, 3, 3, 6)).astype(np.float32)


def test_values_and_gradients_are_those_of_the_two_steps():
    x, kernel = arrays()

    @jax.jit
    def both(x, kernel):
        results = []
        for function in (convolve_upsampled, plainly):
            y, pull = jax.vjp(function, x, kernel)
            results.append((y, *pull(jax.numpy.cos(plainly(x, kernel)))))
        return results

    ours, theirs = both(x, kernel)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [None, (10, 8), (9, 8), (9, 7)])
def test_a_size_crops_before_the_convolution(size):
    x, kernel = arrays()
    height, width = size or (10, 8)
    expected = convolve(upsample_nearest(x)[:, :height, :width], kernel, ((1, 1), (1, 1)))
    module = UpsampleConv(6, use_bias=False)
    ours = module.apply({"params": {"kernel": kernel}}, x, size)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
