"""How the networks see a large or an endless picture: seamless, in windows, the autoencoder in
tiles."""

import dataclasses
from typing import NamedTuple

from sdjax.errors import SdjaxError
from sdjax.pipeline.given import arguments
from sdjax.windows import Windows, cover

AXES = "y", "x"
WHOLE = 2**22
"""Pixels of the largest picture that the autoencoder takes as a whole where nothing else is said:
2048x2048."""
TILE = 1024
"""Side in pixels of the tiles of a larger one."""
LARGEST = 2**36  # pixels of a picture that some memory may hold
OVERLAP = 4  # tiles overlap by this part of their side


def window_sides(name: str, value: object) -> tuple[int, int]:
    """The check of the argument `windows`: (side, overlap) in pixels of one or both."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not 1 <= len(several) <= 2:
        arguments.refuse(name, "the side of a window in pixels, or (side, overlap)", value)
    side = arguments.whole(1)(name, several[0])
    overlap = arguments.whole(0)(f"{name}: overlap", several[1]) if several[1:] else side // 2
    if overlap >= side:
        raise SdjaxError(f"{name}: the overlap must be less than the side {side}, got {overlap}")
    return side, overlap


class Tiling(NamedTuple):
    """How the networks see the pictures of a request; hashable, so that it can be static."""

    tile: tuple[bool, bool] = (False, False)
    """Whether the axes (y, x) go on at their other end."""
    windows: tuple[Windows, ...] = ()
    """Of the U-Net and its ControlNets over the latents' axes, a clip's frames the first; none where
    they see all at once."""
    tiles: tuple[Windows, ...] = ()
    """Of the autoencoder, over the same axes."""
    frames: int | None = None
    """Of a clip, that a decoder which looks along them takes at once; None for all."""

    def network(self, network):
        """A U-Net or a ControlNet as it sees a window."""
        return network.clone(tile=_inside(self.tile, self.windows))

    def vae(self, vae):
        """The autoencoder as it sees a tile."""
        return dataclasses.replace(vae, tile=_inside(self.tile, self.tiles))


def _inside(tile: tuple[bool, bool], windows: tuple[Windows, ...]) -> tuple[bool, bool]:
    """The axes on which a window goes on at its own other end: those that it fills."""
    if not windows:
        return tile
    sides = zip(tile, windows[-len(tile) :], strict=True)
    return tuple(wrap and len(axis.starts) == 1 for wrap, axis in sides)


def tiling(
    tile: str | None,
    windows: tuple[int, int] | None,
    vae_tile: int | None,
    size: tuple[int, int],
    factor: int,
) -> Tiling:
    """What `generate`'s arguments of these names mean for a picture of this size in pixels.

    factor: pixels of a latent. Raises SdjaxError for sides that are no multiples of it.
    """
    wrap = tuple(axis in (tile or "") for axis in AXES)
    if size[0] * size[1] > LARGEST:
        return Tiling(wrap)  # which is refused as a whole
    if vae_tile is None:
        vae_tile = TILE if size[0] * size[1] > WHOLE else 0
    seen = ()
    if windows is not None:
        seen = _covered("windows", *windows, size, factor, wrap)
    tiles = ()
    if vae_tile:
        overlap = vae_tile // factor // OVERLAP * factor
        tiles = _covered("vae_tile", vae_tile, overlap, size, factor, wrap)
    return Tiling(wrap, seen, tiles)


def _covered(name: str, side: int, overlap: int, size, factor: int, wrap) -> tuple[Windows, ...]:
    for what, given in (("side", side), ("overlap", overlap)):
        if given % factor:
            nearest = max(1, round(given / factor)) * factor
            raise SdjaxError(
                f"{name}: the {what} must be a multiple of {factor} pixels, got {given}; "
                f"the nearest is {nearest}"
            )
    axes = tuple(
        cover(pixels // factor, side // factor, overlap // factor, circular)
        for pixels, circular in zip(size, wrap, strict=True)
    )
    return () if all(len(axis.starts) == 1 for axis in axes) else axes
