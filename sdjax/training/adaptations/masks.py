"""Random masks to learn to repaint by, drawn on the device."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError


@dataclass(frozen=True)
class MaskConfig:
    """How masks are drawn: boxes and thick broken lines, as of LaMa (arXiv 2109.07161)."""

    everything: float = 0.25
    """Share of the pictures that are masked whole."""
    boxes: float = 0.5
    """Share of the other masks that are made of boxes; the rest is lines."""
    shapes: int = 4
    """Most boxes, or broken lines, of a mask."""
    corners: int = 5
    """Most corners of a line."""
    largest: float = 0.6
    """Longest side of a box over the picture's."""
    thickest: float = 0.2
    """Thickest line over the picture's longer side."""

    def __post_init__(self):
        for name in ("everything", "boxes", "largest", "thickest"):
            if not 0 <= getattr(self, name) <= 1:
                raise SdjaxError(f"masks.{name} must be in 0 … 1, got {getattr(self, name)}")
        for name in ("shapes", "corners"):
            if getattr(self, name) < 1:
                raise SdjaxError(f"masks.{name} must be at least 1, got {getattr(self, name)}")


def random_mask(config: MaskConfig, key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """float32 [H, W] of 0 and 1, 1 where the picture is to be repainted."""
    kind, boxes, lines = jax.random.split(key, 3)
    whole, boxed = jax.random.uniform(kind, (2,)) < jnp.array([config.everything, config.boxes])
    mask = jnp.where(boxed, _boxes(config, boxes, size), _lines(config, lines, size))
    return jnp.where(whole, 1.0, mask.astype(jnp.float32))


def _grid(size):
    return jnp.meshgrid(*(jnp.arange(n) + 0.5 for n in size), indexing="ij")


def _counted(config, key):
    """bool [shapes]: the first of them, one at least."""
    return jnp.arange(config.shapes) < jax.random.randint(key, (), 1, config.shapes + 1)


def _boxes(config, key, size):
    number, sides, places = jax.random.split(key, 3)
    extent = jnp.array(size, jnp.float32)
    shape = (config.shapes, 2)
    side = jax.random.uniform(sides, shape, minval=0.1, maxval=max(config.largest, 0.1)) * extent
    start = jax.random.uniform(places, shape) * (extent - side)
    y, x = _grid(size)
    inside = jnp.stack([
        (at >= start[:, i, None, None]) & (at < (start + side)[:, i, None, None])
        for i, at in enumerate((y, x))
    ]).all(0)
    return (inside & _counted(config, number)[:, None, None]).any(0)


def _lines(config, key, size):
    number, corners, points, widths = jax.random.split(key, 4)
    extent = jnp.array(size, jnp.float32)
    at = jax.random.uniform(points, (config.shapes, config.corners + 1, 2)) * extent
    width = jax.random.uniform(widths, (config.shapes, 1), minval=0.02, maxval=1)
    radius = width * max(config.thickest, 0.02) * max(size) / 2
    used = jnp.arange(config.corners) < jax.random.randint(
        corners, (config.shapes, 1), 1, config.corners + 1
    )
    used &= _counted(config, number)[:, None]
    pixels = jnp.stack(_grid(size), axis=-1)[..., None, None, :]
    start, step = at[:, :-1], at[:, 1:] - at[:, :-1]
    along = ((pixels - start) * step).sum(-1) / jnp.maximum((step**2).sum(-1), 1e-6)
    nearest = start + jnp.clip(along, 0, 1)[..., None] * step
    near = ((pixels - nearest) ** 2).sum(-1) <= radius**2
    return (near & used).any((-2, -1))
