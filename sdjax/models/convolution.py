"""Convolution, with gradients that XLA runs fast on the CPU.

XLA:CPU takes longer for the gradient of a kernel than for the convolution itself, and longer by far
in the body of a loop (`lax.scan`), because there it leaves the operands in layouts that it has no
fast program for. The gradients below are written as plain matrix products and plain convolutions
instead. Accelerators keep their own.
"""

import functools

import jax
import jax.numpy as jnp

from sdjax.models.attention_kernels import platform
from sdjax.models.depthwise import depthwise

CHUNK = 2048  # pixels that one matrix product of the kernel's gradient sums over


def convolve(x, kernel, padding, stride=1, groups=1, tile=(False, False)):
    """x [B, H, W, in] with kernel [h, w, in / groups, out], padding ((top, bottom), (left, right)).

    What stands in the padding is 0, or for the axes (y, x) that `tile` is true for what stands at
    the opposite side, so that the picture goes on from there as on a wall of equal tiles.
    Returns [B, H', W', out] in the dtype that x and kernel share. On the CPU in float32 it can be
    differentiated in reverse mode only, by a rule of its own, save where the stride is above 2 or it
    has groups that are not single channels.
    """
    if any(tile):
        x, padding = _continued(x, padding, tile)
    if kernel.shape[:2] == (1, 1) and stride == 1 and groups == 1 and not any(map(any, padding)):
        return jnp.dot(x, kernel[0, 0])
    if x.dtype == kernel.dtype == jnp.float32 and platform() == "cpu":
        if groups == 1 and stride in (1, 2):
            return _convolve(x, kernel, padding, stride)
        if stride == 1 and _depthwise_of_one_size(x, kernel, padding, groups):
            return depthwise(x, kernel)
    return _native(x, kernel, padding, stride, groups)


def _continued(x, padding, tile):
    """x with its padding from the opposite side where `tile` says so, and the zeros yet to add."""
    around = [side if wrap else (0, 0) for side, wrap in zip(padding, tile, strict=True)]
    x = jnp.pad(x, [(0, 0), *around, (0, 0)], mode="wrap")
    return x, [(0, 0) if wrap else side for side, wrap in zip(padding, tile, strict=True)]


def _depthwise_of_one_size(x, kernel, padding, groups):
    half = tuple((size // 2, size // 2) for size in kernel.shape[:2])
    odd = all(size % 2 for size in kernel.shape[:2])
    return groups == x.shape[-1] == kernel.shape[-1] and odd and tuple(map(tuple, padding)) == half


def _native(x, kernel, padding, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, padding, stride):
    return _native(x, kernel, padding, stride)


def _forward(x, kernel, padding, stride):
    return _native(x, kernel, padding, stride), (x, kernel)


def _backward(padding, stride, saved, g):
    x, kernel = saved
    if stride == 1:
        return _input_gradient(g, kernel, padding), _kernel_gradient(x, g, kernel.shape, padding)
    # Stride 2 is stride 1 over pixels of four times the channels.
    rows, columns = (2 * (g.shape[i] - 1 + -(-kernel.shape[i - 1] // 2)) for i in (1, 2))

    def fold_x(x):
        (top, _), (left, _) = padding
        bottom, right = rows - x.shape[1] - top, columns - x.shape[2] - left
        return _fold(_pad(x, (top, bottom), (left, right)))

    def fold_kernel(kernel):
        odd = [(0, size % 2) for size in kernel.shape[:2]]
        kernel = jnp.pad(kernel, (*odd, (0, 0), (0, 0)))
        # Taps take the place of pixels, inputs that of channels.
        return jnp.moveaxis(_fold(jnp.moveaxis(kernel, 3, 0)), 0, 3)

    folded_x, unfold_x = jax.vjp(fold_x, x)
    folded_kernel, unfold_kernel = jax.vjp(fold_kernel, kernel)
    none = ((0, 0), (0, 0))
    return (
        *unfold_x(_input_gradient(g, folded_kernel, none)),
        *unfold_kernel(_kernel_gradient(folded_x, g, folded_kernel.shape, none)),
    )


_convolve.defvjp(_forward, _backward)


def _fold(x):
    """[B, 2H, 2W, C] -> [B, H, W, 4C], every 2x2 pixels become one."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def _pad(x, rows, columns):
    """Zeros around the pixels of x; negative numbers take pixels away."""
    around = [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), around)


def _input_gradient(g, kernel, padding):
    """The convolution of g with the turned kernel, in the layout of an ordinary one."""
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    sides = zip(padding, kernel.shape, strict=False)
    return _native(g, turned, [(size - 1 - low, size - 1 - high) for (low, high), size in sides])


def _kernel_gradient(x, g, shape, padding):
    """Σ over pixels p of x[p + tap]·g[p] for all taps, [h, w, in, out].

    The taps' rows are laid side by side as channels of x and the taps' columns as channels of g, so
    that one product of matrices [h·in, pixels] and [pixels, w·out] holds all of them. It is summed
    over strips of pixels that stay in the processor's cache.
    """
    high, wide, channels, features = shape
    batch, height, width = g.shape[0], g.shape[1], x.shape[2]
    rows, (left, right) = padding
    x = _pad(x, rows, (0, 0))
    g = _pad(g, (0, 0), (wide - 1 - left, wide - 1 - right))
    strip = _divisor(height, CHUNK // width)
    if strip < height:
        x = _strips(x, strip, strip + high - 1)
        g = _strips(g, strip, strip)
        batch = batch * height // strip
    count = _divisor(batch, CHUNK // (strip * width))

    def add(total, images):
        x, g = images
        x = jnp.concatenate([x[:, i : i + strip] for i in range(high)], -1)
        g = jnp.concatenate([g[:, :, wide - 1 - j :][:, :, :width] for j in range(wide)], -1)
        # XLA multiplies a transposed matrix several times slower than it transposes and multiplies.
        across = jax.lax.optimization_barrier(x.reshape(-1, high * channels).T)
        return total + across @ g.reshape(-1, wide * features), None

    chunks = [images.reshape(-1, count, *images.shape[1:]) for images in (x, g)]
    zeros = jnp.zeros((high * channels, wide * features), x.dtype)
    total, _ = jax.lax.scan(add, zeros, tuple(chunks))
    return total.reshape(high, channels, wide, features).swapaxes(1, 2)


def _divisor(number, bound):
    """The largest divisor of `number` that is at most `bound`; 1 where that is less."""
    return max((d for d in range(1, min(number, bound) + 1) if number % d == 0), default=1)


def _strips(x, step, size):
    """[B, H, W, C] -> [B·n, size, W, C]: rows from every `step`-th on."""
    starts = range(0, x.shape[1] - size + 1, step)
    strips = jnp.stack([x[:, start : start + size] for start in starts], 1)
    return strips.reshape(-1, *strips.shape[2:])
