"""Normal noise as PyTorch draws it on a CPU, so that a seed gives the picture it gives there."""

import numpy as np

from sdjax.diffusion.host import on_the_host
from sdjax.errors import SdjaxError

BLOCK = 16  # values that PyTorch's vectorised Box–Muller transform makes at once


class Outer(tuple):
    """A shape whose first axis PyTorch has first too, before the channels."""


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
    return torch_draws(seed, [shape])[0]


def torch_draws(seed, shapes):
    """Successive draws of `torch_normal` from one generator: a list of float32 of these shapes."""
    words, drawn = np.random.RandomState(int(seed) & 0xFFFFFFFF), []
    for shape in shapes:
        size = int(np.prod(shape))
        if size < BLOCK:
            raise SdjaxError(f"torch noise needs at least {BLOCK} values, got shape {tuple(shape)}")
        drawn.append(_draw(words, size).reshape(shape))
    return drawn


def torch_images(seeds, shapes):
    """What PyTorch draws in turn for images, with a generator on the CPU for each.

    Args:
      seeds: [batch].
      shapes: (height, width, channels) of each draw, or with more axes before the channels, which
        PyTorch has first, or of an `Outer` second.

    Returns:
      A list of float32[batch, height, width, channels], one a draw.
    """
    before = [int(isinstance(shape, Outer)) for shape in shapes]
    theirs = [
        (*shape[:first], shape[-1], *shape[first:-1])
        for first, shape in zip(before, shapes, strict=True)
    ]
    drawn = zip(*(torch_draws(seed, theirs) for seed in seeds), strict=True)
    return [
        np.moveaxis(np.stack(images), 1 + first, -1)
        for first, images in zip(before, drawn, strict=True)
    ]


@on_the_host
def torch_noise(seeds, table, shape, *, start=True):
    """All noise of a generation as diffusers draws it, with a generator on the CPU for each image.

    The first draw is where the image starts from, the others are what the sampler adds, in turn.
    Two samplers have other numbers elsewhere: see `config.drawn_in_turn`.

    Args:
      seeds: [batch].
      table: a `Table`.
      shape: (height, width, channels) of one image.
      start: False draws none to start from, as diffusers does where it is given latents: what the
        sampler adds then begins with the generator's first number.

    Returns:
      (x float32[batch, h, w, c], noise float32[rows, batch, h, w, c]), both for `sample`; x is
      None without `start`.
    """
    drawn = torch_images(seeds, [shape] * (int(start) + len(table.noise_rows)))
    first = drawn.pop(0) if start else None
    return first, rows_of_noise(table, drawn, (len(seeds), *shape))


def rows_of_noise(table, drawn, shape):
    """Noise of all rows of a table, float32[rows, *shape], of that of its `noise_rows` in turn."""
    noise = np.zeros((len(table.rows.kind), *shape), np.float32)
    for row, one in zip(table.noise_rows, drawn, strict=True):
        noise[row] = one
    return noise


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
