"""Noise of several resolutions at once."""

import jax
import jax.numpy as jnp


def pyramid_noise(key, noise, iterations: int, discount: float) -> jax.Array:
    """`noise` of one picture, float32 [H, W, C], with noise of smaller sizes added, enlarged.

    The i-th of at most `iterations` (0, 1, …) has sides divided by r^i, r drawn from 2 … 4 each
    time, is enlarged bilinearly and counts discount^i; one with a side of 1 is the last. The sum is
    divided by its standard deviation. (J. Whitaker, "Multi-Resolution Noise for Diffusion Model
    Training", 2023, as sd-scripts has it; r and the deviation are each picture's own.)
    """
    alive, sides = True, jnp.array(noise.shape[:2], jnp.float32)
    for i in range(iterations):
        divisor, drawn = draws(jax.random.fold_in(key, i), noise.shape)
        small = jnp.maximum(1, jnp.floor(sides / divisor**i))
        noise = noise + jnp.where(alive, discount**i * enlarged(drawn, small), 0)
        alive = alive & (small > 1).all()
    return noise / jnp.std(noise, ddof=1)


def draws(key, shape):
    """(r in 2 … 4, noise of this shape, of which a smaller size takes the first rows and columns).
    """
    return jax.random.uniform(key, minval=2, maxval=4), jax.random.normal(key, shape)


def enlarged(small, sides):
    """The first sides[0] rows and sides[1] columns of [H, W, C], both traced, enlarged to [H, W, C]
    bilinearly, the corners' pixels not aligned.
    """
    for axis in (0, 1):
        count = small.shape[axis]
        place = jnp.clip((jnp.arange(count) + 0.5) * sides[axis] / count - 0.5, 0, sides[axis] - 1)
        low = jnp.floor(place)
        part = jnp.expand_dims(place - low, [1 - axis, 2])
        low = low.astype(jnp.int32)
        high = jnp.minimum(low + 1, sides[axis].astype(jnp.int32) - 1)
        small = (1 - part) * jnp.take(small, low, axis) + part * jnp.take(small, high, axis)
    return small
