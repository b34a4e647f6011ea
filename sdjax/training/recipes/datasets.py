"""Sets held in memory: pictures as bytes, and the posteriors of their latents."""

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from sdjax.data.source import stack
from sdjax.errors import SdjaxError
from sdjax.models.vae import VAE
from sdjax.parallel import map_over_devices
from sdjax.training.loop.settings import say
from sdjax.training.objectives.autoencoder import as_float


CHUNK = 256  # pictures encoded at once


def read_items(source, indices):
    """These items of a source, whole: dict of "index" int [N], "image" uint8 [N, H, W, 3],
    "caption" str [N], and "label" int [N] where there are labels. Broken items are left out; None
    where all are broken.
    """
    read = ((i, source[i]) for i in _told(indices, f"reading {len(indices)} pictures"))
    items = [{"index": i, **item} for i, item in read if item is not None]
    return stack(items) if items else None


def read_all(source, examples=0):
    """The first `examples` items (0: all) of a source, as `read_items` gives them; SdjaxError where
    none is usable.
    """
    pictures = read_items(source, range(min(examples or len(source), len(source))))
    if pictures is None:
        raise SdjaxError("the data has no usable picture")
    return pictures


def captions(source, count):
    """The first `count` captions of a source."""
    items = (source[i] for i in range(min(count, len(source))))
    return [str(item["caption"]) for item in items if item is not None]


def encoder(vae: VAE):
    """The compiled function (parameters, images uint8 or in [-1, 1], [N, H, W, 3]) -> the posterior
    of each picture: (mean, standard deviation), float32 [N, h, w, C] each.
    """
    def posterior(params, images):
        mean, log_variance = vae.posterior(params, as_float(images))
        return mean, jnp.exp(0.5 * log_variance)

    return map_over_devices(posterior, items=1)


def encode_all(vae: VAE, params, images):
    """Posterior of each picture as `encoder` gives it.

    images: uint8 [N, H, W, 3], or clips [N, F, H, W, 3], whose results are [N, F, h, w, C].
    """
    if images.ndim == 5:
        each = encode_all(vae, params, images.reshape(-1, *images.shape[2:]))
        return tuple(array.reshape(*images.shape[:2], *array.shape[1:]) for array in each)
    program = encoder(vae)
    size = min(CHUNK, len(images))
    parts = []
    for start in _told(range(0, len(images), size), f"encoding {len(images)} pictures"):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)  # one shape, one program
        parts.append(program(params, images[rows]))
    return jax.tree.map(lambda *x: np.concatenate(x)[:len(images)], *parts)


def latent_statistics(mean, std):
    """Mean and standard deviation of the latents in each channel, float32 [C] each."""
    axes = (0, 1, 2)
    center = mean.mean(axes, dtype=np.float64)
    variance = mean.var(axes, dtype=np.float64) + np.square(std).mean(axes, dtype=np.float64)
    return center.astype(np.float32), np.sqrt(variance).astype(np.float32)


def _told(items, what):
    """The items, with a bar that says how far they are; where there is no terminal, a line."""
    if Console().is_terminal:
        return track(items, what, transient=True)
    say(what)
    return items
