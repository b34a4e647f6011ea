"""Adapters of one weight: what the factors of each format make of it.

LoRA (Hu et al. 2021, arXiv:2106.09685), LoCon, LoHa and LoKr (Yeh et al. 2023, arXiv:2309.14859),
GLoRA (Chavan et al. 2023, arXiv:2306.07967), (IA)³ (Liu et al. 2022, arXiv:2205.05638), whole
differences, the rotations of `rotations`, and DoRA's magnitudes (Liu et al. 2024,
arXiv:2402.09353). Weights are float32 in PyTorch's layout, [out, in, …].
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights import rotations

Factors = Mapping[str, np.ndarray]


class _Product(NamedTuple):
    """Factors known to fit, not yet multiplied."""

    rank: int
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def _check_shape(found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """SdjaxError unless a difference is one of a weight [out, in, …]: so, or [out, in · …].

    A linear layer may be written as a 1 × 1 convolution, and the other way round.
    """
    rows, *columns = shape
    bare = [_without_ones(axes) for axes in (shape, (rows, math.prod(columns)))]
    # Of one axis are biases and the weights of norms, which have no factors.
    if _without_ones(found) not in bare or (not columns and found != shape):
        raise SdjaxError(
            f"the adapter is of another model: it changes a weight of shape {found}, this one's "
            f"has {shape}"
        )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of length 1 at its end."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _low_rank(a: np.ndarray, b: np.ndarray, core: np.ndarray | None = None) -> _Product:
    """a [out, r] · b [r, in, …], or with a convolution's core [r, s, …] between them (Tucker)."""
    left, right = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if core is None:
        return _Product(len(b), (len(a), *b.shape[1:]), lambda: left @ right)
    return _Product(
        len(b),
        (len(a), right.shape[1], *core.shape[2:]),
        lambda: np.einsum("or,rs...,si->oi...", left, core, right),
    )


def _lycoris(factors, name: str, core: str = "") -> _Product:
    """A factor that is whole, or itself of low rank, as LyCORIS names and lays it out."""
    if name in factors:
        whole = factors[name]
        return _Product(0, whole.shape, lambda: whole)
    a, b = factors[f"{name}_a"], factors[f"{name}_b"]
    return _low_rank(a.T, b, factors[core]) if core in factors else _low_rank(a, b)


def _kronecker(first: _Product, second: _Product) -> _Product:
    """first ⊗ second, the first of a convolution without its spatial axes."""
    padded = (*first.shape, *(1,) * (len(second.shape) - len(first.shape)))
    return _Product(
        second.rank or first.rank,
        tuple(m * n for m, n in zip(padded, second.shape, strict=True)),
        lambda: np.kron(first.make().reshape(padded), second.make().reshape(second.shape)),
    )


def lengths(factors: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """A DoRA's lengths of a weight's rows [out, 1, …], or columns [1, in, …]; None without DoRA.

    peft's are those of rows; for LyCORIS', the shape tells.
    """
    if {"magnitude", "dora_scale"} <= set(factors):
        raise SdjaxError("it has two DoRA magnitudes: expected one of magnitude and dora_scale")
    name = "magnitude" if "magnitude" in factors else "dora_scale"
    learned = factors.get(name)
    if learned is None:
        return None
    for axis in (0,) if name == "magnitude" else (0, 1):
        along = name == "magnitude" or learned.shape[axis : axis + 1] == shape[axis : axis + 1]
        if along and learned.size == shape[axis]:
            return learned.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    raise SdjaxError(
        f"its {name} of shape {learned.shape} is not that of a weight of shape {shape}"
    )


def _adding(product: Callable[[Factors], _Product]) -> Callable:
    """A change that adds a product of factors, alpha / rank times."""

    def change(weight, factors, strength):
        found = product(factors)
        _check_shape(found.shape, weight.shape)
        return weight + strength * scale(factors, found.rank) * found.make().reshape(weight.shape)

    return change


def scale(factors: Factors, rank: int) -> np.float32:
    """What the product of factors of a rank is multiplied with."""
    alpha = factors["alpha"].item() if "alpha" in factors else rank
    return np.float32(factors.get("scale", alpha / rank if rank else 1))


def _hadamard(factors: Factors) -> _Product:
    first, second = (_lycoris(factors, f"w{i}", f"t{i}") for i in "12")
    _check_shape(second.shape, first.shape)
    return first._replace(
        make=lambda: first.make().reshape(first.shape) * second.make().reshape(first.shape)
    )


def _generalised(weight, factors, strength):
    """GLoRA: W + s·(W·A + B), A = a1·a2 over the inputs and B = b1·b2."""
    rows, columns = weight.shape[:2]
    a, b = ((factors[f"{x}1"], factors[f"{x}2"]) for x in "ab")
    if (len(a[0]), len(b[0])) != (columns, rows):  # as LyCORIS wrote it at first
        a, b = a[::-1], b[::-1]
    product = _low_rank(*b, factors.get("bm"))
    _check_shape(product.shape, weight.shape)
    left, right = (factor.reshape(len(factor), -1) for factor in a)
    inputs = np.einsum("oip,ir,rj->ojp", weight.reshape(rows, columns, -1), left, right,
                       optimize=True).reshape(weight.shape)  # fmt: skip
    delta = inputs + product.make().reshape(weight.shape)
    return weight + strength * scale(factors, product.rank) * delta


def _scaled(weight, factors, strength):
    """(IA)³ of LyCORIS: each row, or each column, lengthened by a learned share."""
    axis = int(factors["on_input"].item() != 0)
    share = factors["scaling"].reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    if share.size != weight.shape[axis]:
        raise SdjaxError(
            f"the adapter is of another model: it scales {share.size} channels, the weight of "
            f"shape {weight.shape} has {weight.shape[axis]}"
        )
    return weight * (1 + strength * share)


class _Kind(NamedTuple):
    """Factors that belong together, and `change(weight, factors, strength)` to the new weight."""

    needed: frozenset[str]
    optional: frozenset[str]
    change: Callable


def _kinds() -> Iterable[_Kind]:
    def kind(needed: Iterable[str], optional: Iterable[str], change) -> _Kind:
        return _Kind(frozenset(needed), frozenset(optional), change)

    extras = ("alpha", "scale", "dora_scale", "magnitude")
    yield kind(("down", "up"), ("mid", *extras),
               _adding(lambda f: _low_rank(f["up"], f["down"], f.get("mid"))))  # fmt: skip
    yield kind(("w1_a", "w1_b", "w2_a", "w2_b"), ("t1", "t2", *extras), _adding(_hadamard))
    for whole in itertools.product((True, False), repeat=2):
        halves = [[f"k_w{i}"] if one else [f"k_w{i}_a", f"k_w{i}_b"]
                  for i, one in zip("12", whole, strict=True)]  # fmt: skip
        yield kind(sum(halves, []), (*extras, *(() if whole[1] else ("k_t2",))),
                   _adding(_kronecker_of))  # fmt: skip
    # Without a rank, an alpha has nothing to be divided by.
    yield kind(("diff",), ("alpha",), _adding(lambda f: _lycoris(f, "diff")))
    yield kind(("a1", "a2", "b1", "b2"), ("bm", *extras), _generalised)
    yield kind(("oft_blocks",), ("alpha", "rescale"), rotations.rotated_outputs)
    yield kind(("oft_R", "terms"), (), rotations.rotated_inputs)
    yield kind(("scaling", "on_input"), (), _scaled)


def _kronecker_of(factors: Factors) -> _Product:
    return _kronecker(_lycoris(factors, "k_w1"), _lycoris(factors, "k_w2", "k_t2"))


_KINDS = tuple(_kinds())


def _changed(weight: np.ndarray, factors: Factors, strength: np.float32) -> np.ndarray:
    """A weight with one adapter, DoRA aside; SdjaxError for factors that are not whole or fit."""
    names = set(factors)
    kinds = [kind for kind in _KINDS if kind.needed <= names]
    if not kinds:
        raise SdjaxError(
            f"an adapter's factors are not whole: found only {', '.join(sorted(names))}"
        )
    kind = max(kinds, key=lambda kind: len(kind.needed))
    if extra := names - kind.needed - kind.optional:
        raise SdjaxError(
            f"an adapter's factors do not belong together: found {', '.join(sorted(extra))} beside "
            f"{', '.join(sorted(kind.needed))}"
        )
    try:
        return kind.change(weight, factors, strength)
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, SdjaxError):
            raise
        shapes = ", ".join(f"{name} {array.shape}" for name, array in factors.items())
        raise SdjaxError(f"an adapter's factors do not fit together: {shapes}") from error


@np.errstate(all="ignore")  # what is not finite is found once it is applied
def difference(factors: Factors, shape: tuple[int, ...]) -> np.ndarray:
    """What an adapter makes of a weight of zeros at strength 1, DoRA aside.

    That is what it adds, where it does not depend on the weight. Raises SdjaxError where factors
    are missing or not those of such a weight.
    """
    return _changed(np.zeros(shape, np.float32), factors, np.float32(1))


@np.errstate(all="ignore")
def adapted(weight: np.ndarray, adapters: Iterable[tuple[Factors, float]]) -> np.ndarray:
    """A weight [out, in, …] or a bias [out], float32, with adapters given as (factors, strength).

    Each changes what those before it left: differences times their strength add up, rotations turn
    the sum. A DoRA then gives each row (or column) the length it learned, of whichever strength,
    as peft and diffusers do.
    """
    result = weight
    for factors, strength in adapters:
        result = _changed(result, factors, np.float32(strength))
        learned = lengths(factors, weight.shape)
        if learned is not None:
            axes = tuple(i for i in range(weight.ndim) if learned.shape[i] == 1)
            result = result * (learned / np.sqrt((result**2).sum(axis=axes, keepdims=True)))
    return result
