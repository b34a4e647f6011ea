"""Weights of few bits: values that stand in a parameter tree where a kernel stood.

A kernel [..., in, out] is a matrix [K, out] here, K over its taps and inputs. int8 and fp8 have a
scale for each output; int4 and nf4 (Dettmers et al. 2023, arXiv 2305.14314) one for each block of up
to 64 inputs of an output, which itself is a number of 8 bits times a unit of the output. A network
makes its kernels wide one by one, where each is used: `at_use`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models.attention_kernels import platform

KINDS = ("int8", "fp8", "int4", "nf4")
LEVELS = {
    "int4": np.arange(-8, 8, dtype=np.float32),
    # Quantiles of a normal distribution, with 0 and both ends exact: appendix E of the paper.
    "nf4": np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
            -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ],
        np.float32,
    ),
}  # fmt: skip
"""What the codes 0 … 15 of the kinds of 4 bits stand for, times their scale."""


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A kernel or table of a network in few bits.

    codes: int8 or float8_e4m3fn [K, out]; of 4 bits uint8 [K / 2, out], the first of two in the high
        half. scales: float32 [out], or of 4 bits uint8 [blocks, out]. units: of 4 bits bfloat16
        [out], else None.
    kind: of `KINDS`. shape: of what it stands for. rows: whether that is a table [out, K], whose
        rows are looked up, and not a kernel.
    """

    codes: Any
    scales: Any
    units: Any
    kind: str
    shape: tuple[int, ...]
    rows: bool = False

    dtype = np.dtype(np.float32)
    """Of what it stands for."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def wide(self, dtype=jnp.float32) -> jax.Array:
        """The weights, computed in float32."""
        return self._matrix(jnp).astype(dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """The same on the host, the same numbers."""
        host = dataclasses.replace(
            self, codes=np.asarray(self.codes), scales=np.asarray(self.scales),
            units=None if self.units is None else np.asarray(self.units),
        )
        return host._matrix(np).astype(dtype or np.float32, copy=False)

    def taken(self, ids) -> jax.Array:
        """The rows [..., K] of a table, float32, without the others."""
        some = jax.tree.map(lambda leaf: leaf[:, ids.ravel()] if leaf.ndim > 1 else leaf[ids.ravel()],
                            (self.codes, self.scales, self.units))
        found = Quantized(*some, self.kind, (ids.size, self.shape[1]), rows=True)
        return found.wide().reshape(*ids.shape, -1)

    def _matrix(self, xp):
        codes, scales = self.codes, self.scales.astype(np.float32)
        if self.kind in LEVELS:
            both = xp.stack([codes >> 4, codes & 15], axis=1).reshape(-1, codes.shape[-1])
            if self.kind == "int4":
                values = both.astype(np.float32) - np.float32(8)
            else:
                values = xp.take(xp.asarray(LEVELS[self.kind]), both, axis=0)
            factors = (scales * self.units.astype(np.float32))[:, None]
            values = values.reshape(len(scales), -1, codes.shape[-1]) * factors
        else:
            values = codes.astype(np.float32) * scales
        if self.rows:
            return values.reshape(self.shape[::-1]).T
        return values.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Raised:
    """A kernel of few bits with a low-rank change that is added to it where it is used.

    down: float [..., in, rank], of the kernel's axes. up: [rank, out], scaled. lengths: float [out],
        what each output's weights have for their length after that, as DoRA learns it; or None.
    """

    base: Quantized
    down: Any
    up: Any
    lengths: Any = None

    dtype = np.dtype(np.float32)
    rows = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def wide(self, dtype=jnp.float32) -> jax.Array:
        """The sum, computed in float32. Its own length counts as a constant for the gradient."""
        total = self.base.wide() + self.down.astype(jnp.float32) @ self.up.astype(jnp.float32)
        if self.lengths is not None:
            own = jnp.sqrt(jnp.sum(total**2, axis=tuple(range(total.ndim - 1))))
            total = total * (self.lengths / jax.lax.stop_gradient(own))
        return total.astype(dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.wide(), dtype)


jax.tree_util.register_dataclass(
    Quantized, data_fields=["codes", "scales", "units"], meta_fields=["kind", "shape", "rows"]
)
jax.tree_util.register_dataclass(
    Raised, data_fields=["base", "down", "up", "lengths"], meta_fields=[]
)


def is_narrow(leaf) -> bool:
    """Whether a leaf of a parameter tree, which is not followed further, is of few bits."""
    return isinstance(leaf, Quantized | Raised)


def whole(leaf) -> jax.Array:
    """A parameter of any kind, wide, float32."""
    return leaf.wide() if is_narrow(leaf) else jnp.asarray(leaf, jnp.float32)


def narrow_leaves(tree) -> list:
    """The values of few bits in a parameter tree."""
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_narrow) if is_narrow(leaf)]


def parameter(module, name: str, init: Callable, shape: tuple[int, ...]):
    """A parameter of a Flax module: float32 of this shape, or what stands for it in few bits."""
    held = module.get_variable("params", name) if module.has_variable("params", name) else None
    if not is_narrow(held):
        return module.param(name, init, shape, jnp.float32)
    if tuple(held.shape) != tuple(shape):
        raise SdjaxError(
            f"{name} of {'/'.join(module.path)} has the shape {tuple(held.shape)}, expected {shape}"
        )
    return held


def at_use(function: Callable, x, kernel, dtype=None):
    """function(x, kernel in dtype), where a kernel of few bits is made wide for this use alone.

    dtype: None for the kernel's own; float32 is that of few bits.
    XLA would make the kernels of all layers wide first, and outside of a loop: each waits for its x.
    For the gradient, in reverse mode only, they are made wide again.
    """
    if not is_narrow(kernel):
        return function(x, kernel if dtype is None else kernel.astype(dtype))

    changes = (kernel.down, kernel.up, kernel.lengths) if isinstance(kernel, Raised) else ()

    def wide(base, changes):
        return (Raised(base, *changes) if changes else base).wide(dtype or jnp.float32)

    @jax.custom_vjp
    def narrow(x, changes, base):
        base, x = _after(base, x)
        return function(x, wide(base, changes))

    def forward(x, changes, base):
        return narrow(x, changes, base), (x, changes, base)

    def backward(saved, g):
        x, changes, base = saved
        base, g = _after(base, g)
        _, pull = jax.vjp(lambda x, changes: function(x, wide(base, changes)), x, changes)
        return *pull(g), None

    narrow.defvjp(forward, backward)
    return narrow(x, changes, kernel.base if changes else kernel)


def _after(base, x):
    """(a kernel that is there only once x is, x)."""
    if platform() == "cpu":
        # XLA:CPU drops barriers before it orders what it computes.
        return _awaiting(base, jax.lax.stop_gradient(x)), x
    return jax.lax.optimization_barrier((base, x))


@jax.custom_batching.custom_vmap
def _awaiting(base, x):
    """The kernel, as a function of x of which XLA does not know that it is constant."""
    never = x.ravel()[0] > jnp.inf  # no number is

    def held(leaf):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(jnp.where(never, 0, bits), leaf.dtype)

    return jax.tree.map(held, base)


@_awaiting.def_vmap
def _awaiting_any(count, batched, base, x):
    """The kernel is the same for all: it waits for one of them."""
    del count
    if any(jax.tree.leaves(batched[0])):
        raise SdjaxError(
            "kernels of few bits are the same for all that a function is mapped over: map over the "
            "inputs alone, or make the kernels wide first"
        )
    return _awaiting(base, x[0]), batched[0]
