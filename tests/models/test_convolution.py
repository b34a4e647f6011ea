"""Gradients of the convolution against those that JAX derives itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.models import convolution
from sdjax.models.convolution import convolve

CASES = {
    "ordinary": ((3, 8, 8, 5), (3, 3), ((1, 1), (1, 1)), 1),
    "one pixel": ((2, 5, 4, 3), (1, 1), ((0, 0), (0, 0)), 1),
    "no padding": ((2, 7, 9, 3), (3, 3), ((0, 0), (0, 0)), 1),
    "asymmetric": ((2, 6, 6, 3), (2, 2), ((1, 0), (0, 1)), 1),
    "oblong kernel": ((2, 9, 6, 3), (5, 2), ((2, 2), (1, 0)), 1),
    "wide padding": ((1, 4, 4, 2), (3, 3), ((3, 2), (2, 3)), 1),
    "stride 2": ((3, 8, 8, 4), (3, 3), ((1, 1), (1, 1)), 2),
    "stride 2, one side": ((2, 8, 6, 4), (3, 3), ((0, 1), (0, 1)), 2),
    "stride 2, odd": ((2, 7, 9, 3), (3, 3), ((1, 1), (1, 1)), 2),
    "stride 2, 4x4": ((2, 8, 8, 3), (4, 4), ((1, 1), (1, 1)), 2),
    "patches": ((2, 8, 8, 3), (2, 2), ((0, 0), (0, 0)), 2),
    "stride 4": ((1, 9, 9, 3), (4, 4), ((1, 1), (1, 1)), 4),
}


def native(x, kernel, padding, stride):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(shape, size, features=6):
    random = np.random.default_rng(0)
    return (random.normal(size=shape).astype(np.float32),
            random.normal(size=(*size, shape[-1], features)).astype(np.float32))


def gradients(function, x, kernel, padding, stride):
    out, back = jax.vjp(lambda x, k: function(x, k, padding, stride), x, kernel)
    return out, *back(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1, 24, 2048])  # strips of rows, some rows, whole images
def test_gradients(case, chunk, monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK", chunk)
    shape, size, padding, stride = CASES[case]
    x, kernel = arrays(shape, size)
    made = jax.jit(lambda x, k: gradients(convolve, x, k, padding, stride))(x, kernel)
    expected = gradients(native, x, kernel, padding, stride)
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_groups_and_half_precision():
    x, kernel = arrays((2, 6, 6, 4), (3, 3), features=8)
    padding = ((1, 1), (1, 1))
    grouped = kernel[:, :, :2]
    expected = jax.lax.conv_general_dilated(x, grouped, (1, 1), padding, feature_group_count=2,
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(convolve(x, grouped, padding, groups=2), expected, atol=1e-5)
    half = convolve(jnp.bfloat16(x), jnp.bfloat16(kernel), padding)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), native(x, kernel, padding, 1), atol=0.5)


def test_vmap_and_second_order():
    x, kernel = arrays((2, 6, 6, 3), (3, 3))
    padding = ((1, 1), (1, 1))

    def total(function, kernel, x):
        return jnp.square(function(x, kernel, padding, 1)).sum()

    def both(function):
        per_image = jax.vmap(jax.grad(lambda k, x: total(function, k, x[None])), (None, 0))
        twice = jax.grad(lambda k: jnp.square(jax.grad(lambda k: total(function, k, x))(k)).sum())
        return per_image(kernel, x), twice(kernel)

    for a, b in zip(both(convolve), both(native), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3 * np.abs(b).max())
