"""Random numbers of the sampling loop, folded from seed, image and row."""

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError

BROWNIAN_DEPTH = 24  # halvings of the time axis, down to what float32 tells apart


def image_keys(key, batch):
    """[batch] random keys: the ones given, or `fold_in(key, i)` for image i."""
    key = jnp.asarray(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32 or key.ndim == 0:
            raise SdjaxError(f"expected random keys, as jax.random.key(0) is one, got {key!r}")
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise SdjaxError(f"expected one key or {batch} keys, one an image, got shape {key.shape}")
    return key


def independent_noise(keys, index, row, like):
    """Standard normal noise shaped like `like` [batch, ...], independent from row to row."""

    def draw(key):
        return jax.random.normal(jax.random.fold_in(key, index), like.shape[1:], like.dtype)

    return jax.vmap(draw)(keys)


def brownian_noise(keys, index, row, like):
    """Increments of one Brownian motion an image over the noise level, scaled to unit variance.

    Another number of steps then divides the same path differently, so that the picture changes
    little (as k-diffusion's Brownian tree). The motion's time is the angle arctan(σ/α), in which
    no step is small beside the others, whether its level is σ = 0.002 or no signal at all. The
    motion is never stored: a virtual Brownian tree (Li et al. 2020, arXiv 2001.01328, algorithm 3)
    finds its value at any time.
    """

    def increment(key, interval):
        start, end = interval
        size = jnp.abs(end - start)
        values = [brownian_motion(key, time, like.shape[1:], like.dtype) for time in (start, end)]
        return (values[1] - values[0]) / jnp.sqrt(jnp.where(size > 0, size, 1))

    return jax.vmap(increment)(keys, jnp.broadcast_to(row.interval, (*keys.shape, 2)))


def brownian_motion(key, time, shape, dtype=jnp.float32):
    """A Brownian motion that starts from zero at time 0, at a time in 0 … 1.

    Args:
      key: of the motion.
      time: [].
      shape, dtype: of the value.
    """

    def halve(depth, carry):
        low, width, value_low, value_high, node = carry
        noise = jax.random.normal(jax.random.fold_in(key, node), shape, dtype)
        middle = (value_low + value_high) / 2 + jnp.sqrt(width / 4) * noise
        right = time >= low + width / 2
        return (
            jnp.where(right, low + width / 2, low),
            width / 2,
            jnp.where(right, middle, value_low),
            jnp.where(right, value_high, middle),
            2 * node + right,
        )

    # The motion's end takes the number 0, the nodes of the tree those from 1 on.
    end = jax.random.normal(jax.random.fold_in(key, 0), shape, dtype)
    time = jnp.asarray(time, dtype)
    start = (jnp.zeros((), dtype), jnp.ones((), dtype), jnp.zeros(shape, dtype), end, 1)
    low, width, value_low, value_high, _ = jax.lax.fori_loop(0, BROWNIAN_DEPTH, halve, start)
    return value_low + (time - low) / width * (value_high - value_low)
