"""The patch discriminator of latent diffusion's autoencoders (arXiv 1611.07004, 2012.09841).

Parameters carry the names of the original's `main`, a list of layers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

SLOPE, EPSILON, WIDEST = 0.2, 1e-5, 8


class PatchDiscriminator(nn.Module):
    """Images float32 [B, H, W, 3] in [-1, 1] to a score of each patch, [B, h, w, 1].

    width: of the first convolution; each of `layers` halves the picture and, up to eight times the
    width, doubles it. Norms are over the batch that is given, as in training.
    """

    width: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x, number, features, stride, bias=True):
            return nn.Conv(
                features, (4, 4), (stride, stride), padding=[(1, 1), (1, 1)], use_bias=bias,
                kernel_init=nn.initializers.normal(0.02), name=f"main.{number}",
            )(x)

        x, number = conv(x, 0, self.width, 2), 2
        for layer in range(1, self.layers + 1):
            features = self.width * min(2**layer, WIDEST)
            stride = 2 if layer < self.layers else 1
            x = conv(nn.leaky_relu(x, SLOPE), number, features, stride, bias=False)
            x = BatchNorm(name=f"main.{number + 1}")(x)
            number += 3
        return conv(nn.leaky_relu(x, SLOPE), number, 1, 1)


class BatchNorm(nn.Module):
    """Normalises each channel by the batch's own mean and variance, float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", _about_one, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + EPSILON) * scale + bias


def _about_one(key, shape):
    return 1 + 0.02 * jax.random.normal(key, shape)
