"""Random numbers of the sampling loop, folded from seed, image and row."""

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError


def image_keys(key, batch):
    """[batch] random keys: the ones given, or `fold_in(key, i)` for image i."""
    key = jnp.asarray(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
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
