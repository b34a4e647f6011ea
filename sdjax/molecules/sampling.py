"""EDM's denoising and sampling of points with features, as functions of arrays."""

from functools import partial

import jax
import jax.numpy as jnp

from sdjax import diffusion
from sdjax.models.egnn import DIMENSIONS


def projection(mask):
    """The projection onto what molecules are: their middle at the origin, nothing where no atom is.

    mask: [B, N, 1].
    """
    return partial(diffusion.without_mean, mask=mask, axis=1, channels=DIMENSIONS)


def predict(network, params, x, time, mask, context=None):
    """ε of x [B, N, 3 + F] as `network`, an EGNN, sees it; float32 [B, N, 3 + F].

    time: in 0 … 1, [] or [B]. context: what is known of the whole, [B, K], or None.
    """
    shape = (*x.shape[:2], 1)
    given = [x[..., DIMENSIONS:], jnp.broadcast_to(jnp.reshape(time, (-1, 1, 1)), shape)]
    if context is not None:
        given.append(jnp.broadcast_to(context[:, None], (*x.shape[:2], context.shape[-1])))
    points = x[..., :DIMENSIONS]
    features, moved = network.apply(
        {"params": params}, jnp.concatenate(given, -1), points, mask
    )
    # What comes out for time and context has no meaning.
    out = jnp.concatenate([moved - points, features[..., : x.shape[-1] - DIMENSIONS]], -1)
    return projection(mask)(out)


def sample(network, params, table, last, mask, context, keys, width):
    """Molecules x [B, N, width] by a table; molecule i depends on its key and mask alone.

    last: the last timestep, which is time 1. mask: [B, N, 1]. keys: [B].
    """
    project = projection(mask)

    def denoise(x, t):
        out = predict(network, params, x, t / last, mask, context)
        # At timestep 0 features are read from x itself, as in EDM, which trains places alone there.
        places = jnp.arange(width) < DIMENSIONS
        return jnp.where(places | (t > 0), out, 0)

    def first(key):
        return jax.random.normal(jax.random.fold_in(key, 0), (mask.shape[1], width))

    return diffusion.sample(
        denoise, table, project(jax.vmap(first)(keys)),
        jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys),
        noise=diffusion.projected_noise(project), keep=lambda x, level: project(x),
    )
