"""Weights of few bits: their numbers, their use in a network, and the memory that it takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.models.layers import Conv, Dense, Embedding, UpsampleConv
from sdjax.models.quantized import KINDS, LEVELS, Raised, narrow_leaves
from sdjax.weights.quantized.rounding import block_of, quantize, quantized

RANDOM = np.random.default_rng(0)
# Of weights that are normally distributed: root of the mean square of the error over theirs.
ERRORS = {"int8": 0.0072, "fp8": 0.027, "int4": 0.092, "nf4": 0.090}
BITS = {"int8": 8, "fp8": 8, "int4": 4, "nf4": 4}


def kernel(*shape):
    return RANDOM.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[:-1])))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_near_and_small(kind):
    for shape, rows in (((320, 96), False), ((3, 3, 40, 24), False), ((50, 192), True)):
        weights = kernel(*shape)
        made = quantized(weights, kind, rows)
        wide = np.asarray(made)
        assert wide.shape == made.shape == shape
        # A compiled program gets the same numbers as the host, to the last bit.
        np.testing.assert_array_equal(wide, jax.jit(lambda leaf: leaf.wide())(made))
        error = np.sqrt(np.mean((wide - weights) ** 2) / np.mean(weights**2))
        assert 0.8 * ERRORS[kind] < error < 1.1 * ERRORS[kind]
        outputs, inputs = shape if rows else (shape[-1], weights.size // shape[-1])
        beside = 32 if BITS[kind] == 8 else 16 + 8 * inputs / block_of(inputs)
        expected = weights.size * BITS[kind] + outputs * beside
        assert 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(made)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_is_nearer_than_the_one_taken(kind):
    weights = kernel(64, 8)
    made = quantized(weights, kind)
    if kind in LEVELS:
        factors = np.float32(made.scales) * np.float32(made.units)
        values = LEVELS[kind][:, None, None] * factors
    else:
        codes = np.arange(256, dtype=np.uint8).view(made.codes.dtype).astype(np.float32)
        codes = codes[np.isfinite(codes) & ((codes != -128) | (kind == "fp8"))]
        values = codes[:, None, None] * made.scales
    nearest = np.abs(values - weights).min(axis=0)
    np.testing.assert_allclose(np.abs(np.asarray(made) - weights), nearest, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_a_single_weight_stay(kind):
    weights = np.zeros((128, 4), np.float32)
    weights[3, 1], weights[70, 2] = 1.0, -2.0
    wide = np.asarray(quantized(weights, kind))
    np.testing.assert_allclose(wide, weights, rtol=5e-3, atol=0)


def test_each_error_is_one_line():
    with pytest.raises(SdjaxError, match="^weights of few bits are one of int8, fp8, int4, nf4"):
        quantize({"a": {"kernel": kernel(32, 4)}}, "int5")
    with pytest.raises(SdjaxError, match="not finite"):
        quantized(np.full((32, 4), np.nan, np.float32), "int8")
    made = quantized(kernel(32, 4), "int8")
    with pytest.raises(SdjaxError, match=r"kernel of .* has the shape \(32, 4\), expected"):
        Dense(5).apply({"params": {"kernel": made, "bias": np.zeros(5)}}, np.zeros((1, 32)))


def test_which_weights_stay_wide():
    norm, bias = np.ones(32, np.float32), np.zeros(32, np.float32)
    tree = {
        "conv_in": {"kernel": kernel(3, 3, 4, 32), "bias": bias},
        "time_embedding": {"linear_1": {"kernel": kernel(32, 32)}},
        "a": {"kernel": kernel(32, 32), "bias": bias}, "norm": {"scale": norm},
        "small": {"kernel": kernel(1, 1, 4, 32)},
        "position_embedding": {"embedding": kernel(8, 32)},
        "token_embedding": {"embedding": kernel(50, 32)},
    }  # fmt: skip
    narrow = quantize(tree, "int4")
    assert len(narrow_leaves(narrow)) == 2
    assert narrow["conv_in"] == tree["conv_in"] and narrow["small"] == tree["small"]
    assert narrow["a"]["bias"] is bias
    again = quantize(narrow, "int4")
    assert again["a"]["kernel"] is narrow["a"]["kernel"]
    assert len(narrow_leaves(quantize(tree, "int8"))) == 3


LAYERS = {
    "dense": (Dense(24), (2, 5, 64)),
    "conv": (Conv(24), (1, 6, 6, 32)),
    "pointwise": (Conv(24, 1), (1, 6, 6, 32)),
    "strided": (Conv(24, stride=2), (1, 6, 6, 32)),
    "upsampled": (UpsampleConv(24), (1, 4, 4, 32)),
}


def taken(layer, params, x, dtype=jnp.float32):
    return layer.clone(dtype=dtype).apply({"params": params}, x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_the_wide_weights(name):
    """The same as with the weights made wide before, forwards and back."""
    layer, shape = LAYERS[name]
    x = RANDOM.standard_normal(shape, np.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    kind = list(KINDS)[list(LAYERS).index(name) % 4]
    narrow = quantize(params, kind)
    wide = {**narrow, "kernel": np.asarray(narrow["kernel"])}
    down = RANDOM.standard_normal((*wide["kernel"].shape[:-1], 2)).astype(np.float32)
    up = RANDOM.standard_normal((2, 24)).astype(np.float32)
    lengths = 1 + RANDOM.random(24, np.float32)

    def loss(x, factors, base):
        kernel = base["kernel"]
        if base is narrow:
            kernel = Raised(kernel, *factors)
        else:
            down, up, lengths = factors
            kernel = kernel + down @ up
            own = jnp.sqrt(jnp.sum(kernel**2, tuple(range(kernel.ndim - 1))))
            kernel = kernel * lengths / jax.lax.stop_gradient(own)
        return jnp.sum(jnp.sin(taken(layer, {**base, "kernel": kernel}, x)))

    np.testing.assert_allclose(
        taken(layer, narrow, x), taken(layer, wide, x), rtol=1e-6, atol=1e-6
    )
    half = jnp.bfloat16
    np.testing.assert_array_equal(taken(layer, narrow, x, half), taken(layer, wide, x, half))
    found, expected = (
        jax.grad(loss, (0, 1))(x, (down, up, lengths), base) for base in (narrow, wide)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_gives_its_rows(kind):
    layer, ids = Embedding(50, 32), jnp.array([[3, 49, 3], [0, 7, 12]])
    params = {"embedding": kernel(50, 32)}
    narrow = {"embedding": quantized(params["embedding"], kind, rows=True)}
    found = taken(layer, narrow, ids)
    np.testing.assert_array_equal(found, np.asarray(narrow["embedding"])[np.asarray(ids)])


class Deep(nn.Module):
    """Dense layers of which each has a kernel of 256 KiB in float32."""

    @nn.compact
    def __call__(self, x):
        for i in range(8):
            x = x + nn.silu(Dense(256, name=f"layer.{i}")(x))
        return x


KERNEL = 256 * 256 * 4


def test_a_kernel_is_shared_by_all_that_is_mapped_over():
    layer, x = Dense(24), RANDOM.standard_normal((3, 2, 32), np.float32)
    params = quantize(layer.init(jax.random.key(0), x)["params"], "int8")
    mapped = jax.vmap(lambda one: taken(layer, params, one))
    np.testing.assert_allclose(mapped(x), taken(layer, params, x), rtol=1e-6, atol=1e-6)
    assert "dimension_numbers=(([2], [0]), ([], []))" in str(jax.make_jaxpr(mapped)(x))


def temporary(function, *arguments):
    """Bytes that a compiled function takes beside its arguments and results."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_wide_one_at_a_time_in_a_loop(kind):
    """Not all at once, as XLA has them where it may take them out of the loop."""
    network, x = Deep(), jnp.ones((1, 256))
    params = quantize(network.init(jax.random.key(0), x)["params"], kind)

    def sampled(params, x):
        return jax.lax.scan(lambda x, _: (network.apply({"params": params}, x), None), x, None, 4)

    assert temporary(sampled, params, x) < 3 * KERNEL


def test_a_gradient_keeps_no_wide_kernels():
    network, x = Deep(), jnp.ones((1, 256))
    params = quantize(network.init(jax.random.key(0), x)["params"], "nf4")

    def loss(x, params):
        return jnp.sum(network.apply({"params": params}, x) ** 2)

    assert temporary(jax.grad(loss), x, params) < 3 * KERNEL
