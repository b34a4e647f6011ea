"""LoRAs on top of weights of few bits: added where a kernel is used, not to the kernel."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sdjax.models.quantized import Quantized, Raised
from sdjax.weights import lora
from sdjax.weights.arrays import all_finite

_PLAIN = {"down", "up", "alpha", "scale"}


def raised(
    leaf: Quantized, adapters: Iterable[tuple[lora.Factors, float]]
) -> Raised | np.ndarray:
    """A kernel [..., in, out] with adapters given as (factors, strength).

    LoRAs stand side by side as one of the sum of their ranks. Of other kinds of adapters, which are
    no sum of small products, the kernel becomes a wide one, float32 on the host.
    """
    adapters = list(adapters)
    axes = (leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))
    if not all(set(factors) <= _PLAIN for factors, _ in adapters):
        weight = np.ascontiguousarray(np.asarray(leaf).transpose(axes))
        return lora.adapted(weight, adapters).transpose(*range(2, leaf.ndim), 1, 0)
    downs, ups = [], []
    for factors, strength in adapters:
        rank = len(factors["down"])
        down = factors["down"].reshape(rank, leaf.shape[-2], *leaf.shape[:-2])
        up = factors["up"].reshape(leaf.shape[-1], rank)
        downs.append(down.transpose(*range(2, leaf.ndim), 1, 0))
        ups.append(up.T * np.float32(strength) * lora.scale(factors, rank))
    return Raised(leaf, np.concatenate(downs, -1), np.concatenate(ups, 0))


def finite(result: Raised | np.ndarray) -> bool:
    """Whether no number of what was made is infinite or none."""
    made = (result.down, result.up) if isinstance(result, Raised) else (result,)
    return all(map(all_finite, made))


def beside(result: Raised | np.ndarray, leaf: Quantized) -> Raised | jax.Array | np.ndarray:
    """What was made on the host, where the kernel lies; a copy of it on each of its devices."""
    if not isinstance(leaf.codes, jax.Array):
        return result
    place = leaf.codes.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec())
    if isinstance(result, Raised):
        return Raised(leaf, *jax.device_put((result.down, result.up), place))
    return jax.device_put(np.ascontiguousarray(result), place)
