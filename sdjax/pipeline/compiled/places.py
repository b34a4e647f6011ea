"""Where the images of a batch are made: laid out over the local devices, and put together again."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from sdjax import parallel
from sdjax.pipeline.compiled.arrays import Images


class Place(NamedTuple):
    """Where the images of a batch are made."""

    rows: np.ndarray
    """int[devices, n]: the image at each place of each device; the last fills up."""
    across: bool
    """Whether a guided image takes two devices: an even one for the negative prompt, the next
    for the prompt. Else all branches are one batch on the image's device."""
    on: parallel.Copies | parallel.Sharded = parallel.COPIES
    """What a device is: one with a copy of the parameters, or several that share one."""


def place(count: int, branches: int, on=parallel.COPIES) -> Place:
    """Lays `count` images out over the devices of `on`, with the fewest evaluations in a row.

    branches: predictions that an evaluation of an image takes; 2 with guidance.
    """
    devices = on.groups
    pairs = branches == 2 and devices % 2 == 0
    across = pairs and -(-2 * count // devices) < 2 * -(-count // devices)
    groups = devices // 2 if across else devices
    rows = np.minimum(np.arange(groups * -(-count // groups)), count - 1).reshape(groups, -1)
    return Place(np.repeat(rows, 2, axis=0) if across else rows, across, on)


def joined(mapped, place: Place, count: int) -> np.ndarray:
    """The images of an array [devices, n, …], in their order, as NumPy [count, …]."""
    mapped = np.asarray(mapped)[:: 2 if place.across else 1]
    return mapped.reshape(-1, *mapped.shape[2:])[:count]


def on_devices(images: Images, place: Place) -> Images:
    """Arrays [N, …] laid out as [devices, n, …], each device with the branches that it evaluates."""
    images = jax.tree.map(lambda array: array[place.rows], images)
    if not place.across:
        return images
    own = np.arange(len(place.rows)) % 2

    def halved(array):
        if array.shape[2] == 1:
            return array
        return np.stack([array[device][:, [branch]] for device, branch in enumerate(own)])

    return images._replace(branches=jax.tree.map(halved, images.branches))


@functools.cache
def compiled(function, *static, in_axes: tuple, on=parallel.COPIES):
    """A function of this module with its static arguments given, mapped over the devices of `on`.

    in_axes: for each other argument, or each of its fields, 0 where it is split over the devices
    and None where it is the same on all. The program is kept for the life of the process.
    """
    mapped = functools.partial(function, *static)
    return on.map(mapped, in_axes)
