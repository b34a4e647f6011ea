"""A large array in parts: overlapping windows over its axes, and results put together by weights.

For autoencoders whose memory grows with the picture, for pictures larger than a network was trained
at (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113), and for long clips.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError

Weighting = Literal["even", "ramp"]
"""How results of windows that overlap are put together: their mean, or so that each fades from 1 to
0 where the next one begins."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of one size that cover an axis; hashable, so that they can be static.

    size: of the axis. window: of each window. starts: where they begin. circular: whether the axis
    is a ring, on which windows go on from its end to its beginning.
    """

    size: int
    window: int
    starts: tuple[int, ...]
    circular: bool = False

    def times(self, factor: int) -> "Windows":
        """The same windows over an axis of `factor` times as many places."""
        starts = tuple(factor * start for start in self.starts)
        return Windows(factor * self.size, factor * self.window, starts, self.circular)

    def weights(self, weighting: Weighting) -> np.ndarray:
        """float32 [windows, window]: of each window's places; they add up to 1 at each place."""
        weights = np.ones((len(self.starts), self.window))
        if weighting == "ramp":
            for before, after in self._neighbours():
                overlap = self.starts[before] + self.window - self.starts[after]
                overlap -= self.size * (after < before)  # over the seam of a ring
                ramp = np.arange(max(overlap, 0)) / max(overlap, 1)
                weights[after][: len(ramp)] *= ramp
                weights[before][self.window - len(ramp) :] *= 1 - ramp
        places = (np.array(self.starts)[:, None] + np.arange(self.window)) % self.size
        total = np.zeros(self.size)
        np.add.at(total, places, weights)
        return np.float32(weights / total[places])

    def _neighbours(self) -> list[tuple[int, int]]:
        numbers = range(len(self.starts))
        pairs = list(itertools.pairwise(numbers))
        if self.circular and len(numbers) > 1:
            pairs.append((len(numbers) - 1, 0))
        return pairs


def cover(size: int, window: int, overlap: int, circular: bool = False) -> Windows:
    """The fewest windows, evenly spread, that cover `size` places and overlap by `overlap` or more.

    One of the whole axis where it is no larger than a window. Raises SdjaxError for an overlap that
    no window can have.
    """
    if window < 1 or not 0 <= overlap < window:
        raise SdjaxError(
            f"windows of {window} cannot overlap by {overlap}: expected 0 … window - 1"
        )
    if size <= window:
        return Windows(size, size, (0,), circular)
    rest, last = (size, size) if circular else (size - overlap, size - window)
    count = -(-rest // (window - overlap))
    gaps = count if circular else count - 1
    return Windows(size, window, tuple(last * i // gaps for i in range(count)), circular)


def over_windows(
    function: Callable, arrays, windows: tuple[Windows, ...], weighting: Weighting
):
    """`function(arrays)` carried out on windows, one at a time, and its results put together.

    Args:
      function: of a tree of arrays, gives a tree of arrays. All have the windowed axes after the
        batch; an axis may have any whole multiple or part of the places that `windows` says.
      arrays: a tree of arrays [N, …].
      windows: of the axes 1, 2, …; axes after them are left as they are.

    Returns:
      What `function` gives, for the whole, added up in float32 at least. Where each axis has one
      window, the function is called once, on the whole.
    """
    if all(len(axis.starts) == 1 for axis in windows):
        return function(arrays)
    places = np.array(list(itertools.product(*(range(len(axis.starts)) for axis in windows))))

    def at(array, axes):
        """The windows of each axis at an array's own number of places."""
        return [_scaled(axis, array.shape[i], i) for i, axis in enumerate(axes, 1)]

    def extended(array):
        own = at(array, windows)
        around = [(0, axis.window if axis.circular else 0) for axis in own]
        rest = [(0, 0)] * (array.ndim - 1 - len(own))
        return jnp.pad(array, [(0, 0), *around, *rest], mode="wrap")

    def cut(whole, array, numbers):
        own = at(array, windows)
        sizes = [len(array), *(axis.window for axis in own), *array.shape[1 + len(own) :]]
        return jax.lax.dynamic_slice(whole, _corner(own, numbers, array.ndim), sizes)

    whole = jax.tree.map(extended, arrays)
    first = jax.eval_shape(function, jax.tree.map(lambda *a: cut(*a, places[0]), whole, arrays))

    def results(shape):
        """The windows of each axis at the number of places that a result has."""
        places = (shape.shape[i] * axis.size // axis.window for i, axis in enumerate(windows, 1))
        pairs = enumerate(zip(windows, places, strict=True), 1)
        return [_scaled(axis, n, i) for i, (axis, n) in pairs]

    def empty(shape):
        own = results(shape)
        sizes = [axis.size + (axis.window if axis.circular else 0) for axis in own]
        sizes = shape.shape[0], *sizes, *shape.shape[1 + len(own) :]
        return jnp.zeros(sizes, jnp.promote_types(shape.dtype, jnp.float32))

    def add(totals, numbers):
        made = function(jax.tree.map(lambda *a: cut(*a, numbers), whole, arrays))

        def added(total, part, shape):
            own = results(shape)
            weight = _outer([axis.weights(weighting) for axis in own], numbers)
            weight = weight.reshape(*weight.shape, *(1,) * (part.ndim - 1 - len(own)))
            corner = _corner(own, numbers, part.ndim)
            old = jax.lax.dynamic_slice(total, corner, part.shape)
            new = old + (weight * part).astype(total.dtype)
            return jax.lax.dynamic_update_slice(total, new, corner)

        return jax.tree.map(added, totals, made, first), None

    totals, _ = jax.lax.scan(add, jax.tree.map(empty, first), jnp.asarray(places))

    def folded(total, shape):
        for i, axis in enumerate(results(shape), 1):
            if axis.circular:
                tail = jax.lax.slice_in_dim(total, axis.size, None, axis=i)
                total = jax.lax.slice_in_dim(total, 0, axis.size, axis=i)
                head = jax.lax.slice_in_dim(total, 0, axis.window, axis=i)
                total = jax.lax.dynamic_update_slice_in_dim(total, head + tail, 0, axis=i)
        return total

    return jax.tree.map(folded, totals, first)


def _scaled(axis: Windows, places: int, number: int) -> Windows:
    """The windows of an axis for an array that has so many places on it."""
    scaled = [axis.size, axis.window, *axis.starts]
    if any(value * places % axis.size for value in scaled):
        raise SdjaxError(
            f"axis {number} has {places} places: windows of {axis.window} in {axis.size} that "
            f"begin at {', '.join(map(str, axis.starts))} do not fall on them"
        )
    size, window, *starts = (value * places // axis.size for value in scaled)
    return Windows(size, window, tuple(starts), axis.circular)


def _corner(axes: list[Windows], numbers, dims: int) -> list:
    """Where a window begins in an array of so many axes."""
    starts = [jnp.asarray(axis.starts)[numbers[i]] for i, axis in enumerate(axes)]
    return [0, *starts, *[0] * (dims - 1 - len(axes))]


def _outer(weights: list[np.ndarray], numbers) -> jax.Array:
    """The weights of a window over all its axes."""
    product = jnp.ones(())
    for i, of_axis in enumerate(weights):
        product = product[..., None] * jnp.asarray(of_axis)[numbers[i]]
    return product
