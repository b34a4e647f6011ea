"""Features of pictures: functions from images to vectors that distances compare.

A feature function takes float32 [N, H, W, 3] in [-1, 1] and returns [N, D]. Those here are fixed
formulas that need no download. They see colour, layout, edges and texture, not meaning, so their
Fréchet distance ranks models trained on the same pictures but is no substitute for the published
FID, which uses the Inception network. Such a network is given as "module:function".
"""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError

SIDE = 64  # every picture is brought to this side first
_BATCH = 256


def pixels(images):
    """Colours of an 8x8 thumbnail: [N, H, W, 3] -> [N, 192]. Sees palette and coarse layout."""
    return _resize(images, 8).reshape(len(images), -1)


def edges(images):
    """Histograms of oriented gradients (Dalal and Triggs 2005): [N, H, W, 3] -> [N, 512].

    Eight directions over a half turn in 8x8 cells of the picture's lightness. Each cell is divided
    by the length of its 3x3 neighbourhood, plus a floor that keeps noise in flat areas small.
    """
    light = _resize(images, SIDE) @ jnp.array([0.299, 0.587, 0.114])
    padded = jnp.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
    x = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    y = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    length = jnp.sqrt(jnp.square(x) + jnp.square(y) + 1e-12)
    # The angle modulo a half turn, shared linearly between the two nearest of eight directions.
    flat = (x == 0) & (y == 0)  # where the angle, 0 by convention, has no gradient
    turn = (jnp.arctan2(y, jnp.where(flat, 1.0, x)) / jnp.pi % 1.0) * 8
    distance = jnp.abs(turn[..., None] - jnp.arange(8))
    share = jnp.maximum(1 - jnp.minimum(distance, 8 - distance), 0)
    cells = (share * length[..., None]).reshape(-1, 8, 8, 8, 8, 8).mean((2, 4))
    energy = jnp.square(cells).sum(-1)
    around = jax.lax.reduce_window(energy, 0.0, jax.lax.add, (1, 3, 3), (1, 1, 1), "SAME")
    return (cells / jnp.sqrt(around[..., None] + 0.01)).reshape(len(images), -1)


def textures(images):
    """Means and deviations of fixed random filters: [N, H, W, 3] -> [N, 192].

    At 64, 32 and 16 pixels, the picture goes through 32 random 5x5 zero-mean filters of unit
    length; their rectified responses have a mean and a standard deviation over the picture.
    """
    found = []
    for level in range(3):
        small = _resize(images, SIDE >> level)
        y = jax.lax.conv_general_dilated(small, _random_filters(level), (1, 1), "VALID",
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = jnp.abs(y)
        found += [y.mean((1, 2)), jnp.sqrt(y.var((1, 2)) + 1e-12)]
    return jnp.concatenate(found, -1)


def default(images):
    """`pixels`, `edges` and `textures` side by side, [N, 896], weighted to count about alike."""
    return jnp.concatenate([pixels(images), edges(images), 2 * textures(images)], -1)


FUNCTIONS = {"default": default, "pixels": pixels, "edges": edges, "textures": textures}


def feature_function(name):
    """The function of a name in FUNCTIONS, or of "module:function" on the import path.

    Raises SdjaxError where there is no such function.
    """
    if name in FUNCTIONS:
        return jax.jit(FUNCTIONS[name])
    module, colon, attribute = name.partition(":")
    if not colon:
        raise SdjaxError(f"features must be one of {', '.join(FUNCTIONS)}, or module:function, "
                         f"got {name!r}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty name
        raise SdjaxError(f"no feature function {name!r}: {error}") from error


def extract(function, images):
    """`function` over images in batches: [N, H, W, 3] float in [-1, 1] or uint8 -> [N, D] float64.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise SdjaxError(f"images [N, H, W, 3] expected, got shape {images.shape}")
    found = []
    for start in range(0, len(images), _BATCH):
        batch = images[start:start + _BATCH]
        if batch.dtype == np.uint8:
            batch = batch.astype(np.float32) / 127.5 - 1
        rows = np.asarray(function(batch.astype(np.float32)), np.float64)
        if rows.ndim != 2 or len(rows) != len(batch):
            raise SdjaxError(f"a feature function returns [N, D]; for {len(batch)} images came "
                             f"shape {rows.shape}")
        found.append(rows)
    return np.concatenate(found)


def _resize(images, side):
    images = jnp.asarray(images, jnp.float32)
    shape = (images.shape[0], side, side, images.shape[3])
    return jax.image.resize(images, shape, "linear", antialias=True)


@functools.cache
def _random_filters(level):
    """Fixed filters [5, 5, 3, 32] from NumPy's frozen MT19937 stream."""
    filters = np.random.RandomState(level).standard_normal((5, 5, 3, 32))
    filters -= filters.mean((0, 1))
    filters /= np.sqrt(np.square(filters).sum((0, 1, 2)))
    return filters.astype(np.float32) * math.sqrt(0.5)
