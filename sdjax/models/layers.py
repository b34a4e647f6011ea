"""Layers that every network here is built of.

Inside, images are NHWC, convolution kernels HWIO and dense kernels [in, out]. Parameters are
float32, or kernels and tables of few bits (`quantized`); `dtype` is the dtype of the computation. Paddings and defaults are PyTorch's, so that a
checkpoint made there gives the same numbers here.
"""

from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.convolution import convolve
from sdjax.models.quantized import at_use, is_narrow, parameter

default_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros_init = nn.initializers.zeros_init()


def gelu(x):
    """x·Φ(x) exactly (arXiv 1606.08415), in float32."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS = {
    "silu": nn.silu,
    "swish": nn.silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
}


class Dense(nn.Module):
    """y = x·kernel + bias over the last axis. x [..., in] -> [..., features] in `dtype`."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = default_init

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)

        def product(x, kernel):
            return jnp.dot(x, kernel, preferred_element_type=jnp.float32)

        y = at_use(product, x.astype(self.dtype), kernel, self.dtype)
        if self.use_bias:
            y = y + self.param("bias", zeros_init, (self.features,), jnp.float32)
        return y.astype(self.dtype)


class Conv(nn.Module):
    """Two-dimensional convolution. x [B, H, W, in] -> [B, H', W', features] in `dtype`.

    `padding` is a number of pixels on every side, or ((top, bottom), (left, right)); None keeps the
    size at stride 1, as (kernel - 1) // 2 does for an odd kernel. `tile` as for `convolve`.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None
    groups: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = default_init
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        padding = (self.kernel - 1) // 2 if self.padding is None else self.padding
        if isinstance(padding, int):
            padding = ((padding, padding), (padding, padding))

        def convolved(x, kernel):
            return convolve(x, kernel, padding, self.stride, self.groups, self.tile)

        y = at_use(convolved, x.astype(self.dtype), kernel, self.dtype)
        if self.use_bias:
            y = y + self.param("bias", zeros_init, (self.features,), jnp.float32).astype(self.dtype)
        return y


class Embedding(nn.Module):
    """A learned table. ids int [...] -> [..., features] in `dtype`."""

    num_embeddings: int
    features: int
    dtype: jnp.dtype = jnp.float32
    embedding_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, ids):
        shape = (self.num_embeddings, self.features)
        table = parameter(self, "embedding", self.embedding_init, shape)
        if is_narrow(table):
            return table.taken(ids).astype(self.dtype)
        return jnp.take(table, ids, axis=0).astype(self.dtype)


def upsample_nearest(x):
    """[B, H, W, C] -> [B, 2H, 2W, C], every pixel four times."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def convolve_upsampled(x, kernel, tile=(False, False)):
    """A 3x3 convolution of `upsample_nearest(x)` at 4/9 of its multiplications.

    Of the three rows that a kernel covers two are always copies of one row of x, so an output pixel
    of each row and column parity is a 2x2 convolution of x with sums of the kernel's taps.
    x [B, H, W, in], kernel [3, 3, in, out], float32 -> [B, 2H, 2W, out] in x's dtype; `tile` as
    for `convolve`.
    """
    batch, height, width, _ = x.shape

    def taps(kernel, axis):
        first, second, third = jnp.split(kernel, 3, axis)
        even = jnp.concatenate([first, second + third], axis)
        odd = jnp.concatenate([first + second, third], axis)
        return even, odd

    parities = [
        [
            convolve(
                x, part.astype(x.dtype), ((1 - row, row), (1 - column, column)), tile=tile
            )
            for column, part in enumerate(taps(rows, 1))
        ]
        for row, rows in enumerate(taps(kernel, 0))
    ]
    y = jnp.stack([jnp.stack(columns, 3) for columns in parities], 2)
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


class UpsampleConv(nn.Module):
    """Nearest neighbour to twice the size, then a 3x3 convolution; parameters as for Conv.

    x [B, H, W, in] -> [B, 2H, 2W, features], or with `size` (h, w) cropped to it in between.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    tile: tuple[bool, bool] = (False, False)

    @nn.compact
    def __call__(self, x, size=None):
        x = x.astype(self.dtype)
        whole = (2 * x.shape[1], 2 * x.shape[2])
        kernel = parameter(self, "kernel", default_init, (3, 3, x.shape[-1], self.features))

        def convolved(x, kernel):
            if size is None or tuple(size) == whole:
                return convolve_upsampled(x, kernel, self.tile)
            x = upsample_nearest(x)[:, : size[0], : size[1]]
            return convolve(x, kernel.astype(self.dtype), ((1, 1), (1, 1)), tile=self.tile)

        y = at_use(convolved, x, kernel)
        if self.use_bias:
            y = y + self.param("bias", zeros_init, (self.features,), jnp.float32).astype(self.dtype)
        return y
