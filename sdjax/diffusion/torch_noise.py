"""Normal noise as PyTorch draws it on a CPU, so that a seed gives the picture it gives there."""

import numpy as np

from sdjax.diffusion.host import on_the_host
from sdjax.errors import SdjaxError

BLOCK = 16  # values that PyTorch's vectorised Box–Muller transform makes at once


def torch_normal(seed, shape):
    """`torch.randn(shape, generator=torch.Generator().manual_seed(seed))`, without torch.

    Mersenne Twister words, the lower 24 bits of each a uniform number, and Box–Muller in blocks of
    sixteen (ATen's `normal_fill`). Agrees to 5e-7.

    Args:
      seed: 0 … 2^32 − 1; of a larger one PyTorch, too, takes the lower 32 bits.
      shape: of at least 16 values; PyTorch draws fewer in another way.

    Returns:
      float32 of `shape`.
    """
    return torch_draws(seed, shape, 1)[0]


def torch_draws(seed, shape, count):
    """`count` successive draws of `torch_normal` from one generator: float32[count, *shape]."""
    size = int(np.prod(shape))
    if count and size < BLOCK:
        raise SdjaxError(f"torch noise needs at least {BLOCK} values, got shape {tuple(shape)}")
    words = np.random.RandomState(int(seed) & 0xFFFFFFFF)
    drawn = np.empty((count, size), np.float32)
    for one in drawn:
        one[:] = _draw(words, size)
    return drawn.reshape(count, *shape)


@on_the_host
def torch_noise(seeds, table, shape, *, start=True):
    """All noise of a generation as diffusers draws it, with a generator on the CPU for each image.

    The first draw is where the image starts from, the others are what the sampler adds, in turn.
    Two samplers have other numbers elsewhere: see `config.drawn_in_turn`.

    Args:
      seeds: [batch].
      table: a `Table`.
      shape: (height, width, channels) of one image; PyTorch has the channels first.
      start: False draws none to start from, as diffusers does where it is given latents: what the
        sampler adds then begins with the generator's first number.

    Returns:
      (x float32[batch, h, w, c], noise float32[rows, batch, h, w, c]), both for `sample`; x is
      None without `start`.
    """
    height, width, channels = shape
    rows, first = table.noise_rows, int(start)
    drawn = [torch_draws(seed, (channels, height, width), first + len(rows)) for seed in seeds]
    drawn = np.stack(drawn, axis=1).transpose(0, 1, 3, 4, 2)
    noise = np.zeros((len(table.rows.kind), *drawn.shape[1:]), np.float32)
    noise[rows] = drawn[first:]
    return drawn[0] if start else None, noise


def _draw(words, size):
    """[size] values from the generator's next words."""

    def uniform(count):
        drawn = words.randint(0, 1 << 32, count, dtype=np.uint32)
        return (drawn & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    values = uniform(size)
    whole = size - size % BLOCK
    values[:whole] = _normal(values[:whole])
    if size % BLOCK:
        values[-BLOCK:] = _normal(uniform(BLOCK))
    return values


def _normal(uniform):
    pairs = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(-2 * np.log1p(-pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
