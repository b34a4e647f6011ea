"""Depthwise convolution as sums of shifted pictures, for the CPU.

XLA:CPU has no fast program for a convolution of single channels, and none for its gradients. As a
sum over the kernel's taps it becomes one loop over the pixels, with all channels side by side.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def depthwise(x, kernel):
    """x [B, H, W, C] with kernel [h, w, 1, C], h and w odd: each channel with its own, same size.

    Zeros lie around the picture. Reverse mode only.
    """
    height, width = x.shape[1:3]
    padded = _padded(x, kernel)
    return sum(
        padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


def _padded(x, kernel):
    half = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jnp.pad(x, ((0, 0), *half, (0, 0)))


def _forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _backward(saved, g):
    x, kernel = saved
    padded = _padded(x, kernel)

    def tap(place):
        i, j = place
        return jnp.sum(jax.lax.dynamic_slice(padded, (0, i, j, 0), x.shape) * g, (0, 1, 2))

    taps = jnp.stack(jnp.meshgrid(*map(jnp.arange, kernel.shape[:2]), indexing="ij"), -1)
    by_kernel = jax.lax.map(tap, taps.reshape(-1, 2)).reshape(kernel.shape)
    return depthwise(g, kernel[::-1, ::-1]), by_kernel


depthwise.defvjp(_forward, _backward)
