"""Low-rank adapters: what each format adds to which weight.

LoRA (Hu et al. 2021, arXiv:2106.09685), LoCon, LoHa and LoKr (Yeh et al. 2023, arXiv:2309.14859)
and DoRA's magnitudes (Liu et al. 2024, arXiv:2402.09353), in the names of sd-scripts (diffusers'
or SGM's block names), peft and old diffusers. Weights are in PyTorch's layout here.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights import original, peft_config
from sdjax.weights.arrays import all_finite
from sdjax.weights.tensors import LazyTensor

# Names of the same factor in the formats.
_FACTORS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **{f"hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{
        f"lokr_{name}": f"k_{name}"
        for name in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")
    },
}
_SUFFIXES = sorted(_FACTORS, key=len, reverse=True)
# Attention processors of old diffusers: `attn1.processor.to_q_lora.down.weight`.
_PROCESSOR = re.compile(r"(.*?)\.?(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight")
_TEXT_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_SCRIPTS_PREFIX = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}

Target = tuple[str, str]
"""A part ("unet", "text_encoder", …) and the state-dict key of one of its weights."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Factors for each target they change, and the keys of the file that found none."""

    factors: Mapping[Target, Mapping[str, np.ndarray]]
    unused: tuple[str, ...]


def read_adapter(
    state: Mapping[str, LazyTensor],
    targets: Mapping[str, Mapping[str, tuple[int, ...]]],
    layers: int = 2,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Adapter:
    """Finds the target of every tensor of an adapter file.

    targets: for each part, the shape of every weight by its state-dict key. layers:
    residual blocks a level, for SGM's block names. configs: peft's configuration of each part that
    has one; it gives the scale of factors that come without an alpha, which else is 1.
    Raises SdjaxError where no tensor finds a target, or factors are missing, misshapen or not
    finite.
    """
    names = module_names(targets, layers)
    found: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    unused = []
    for key, tensor in state.items():
        module, factor = _split(key)
        if factor and module in names:
            found[module][factor] = tensor
        else:
            unused.append(key)
    if not found:
        raise SdjaxError(
            f"no tensor of the adapter fits this model: its {len(state)} keys begin with "
            f"{', '.join(sorted(state)[:2])}"
        )
    factors: dict[Target, dict[str, np.ndarray]] = defaultdict(dict)
    for module, tensors in found.items():
        parts = {name: tensor.load().astype(np.float32) for name, tensor in tensors.items()}
        for name, array in parts.items():
            if not all_finite(array):
                raise SdjaxError(f"the {name} of {module} holds values that are not finite")
        factors[_chosen(names[module], parts, targets)] |= parts
    for (part, key), parts in factors.items():
        module = key.removesuffix(".weight")
        if configs and part in configs and "alpha" not in parts:
            long = module if part == "unet" else f"text_model.{module.removeprefix('text_model.')}"
            parts["scale"] = np.float32(peft_config.scale(configs[part], long))
        try:
            difference(parts, targets[part][key])
            lengths(parts, targets[part][key])
        except SdjaxError as error:
            raise SdjaxError(f"{module}: {error}") from error
    return Adapter(factors, tuple(unused))


def _chosen(candidates: list[Target], factors, targets) -> Target:
    """The target that factors fit: peft does not say which of two text encoders it is."""
    for part, key in candidates if len(candidates) > 1 else ():
        try:
            difference(factors, targets[part][key])
            return part, key
        except SdjaxError:
            continue
    return candidates[0]


def module_names(targets, layers: int) -> dict[str, list[Target]]:
    """Every name that the formats give to a module, to its weight, or those it may stand for."""
    names = defaultdict(list)
    for part, weights in targets.items():
        for key, shape in weights.items():
            if not key.endswith(".weight") or len(shape) < 2:
                continue
            target, module = (part, key), key.removesuffix(".weight")
            if part == "unet":
                level = re.match(r"up_blocks\.(\d+)\.upsamplers", module)
                attended = level and f"up_blocks.{level[1]}.attentions.0.proj_in.weight" in weights
                there = original.unet_to_original(key, layers, bool(attended))
                flat = (module, there.removesuffix(".weight"))
                spellings = {module, f"{peft_config.PREFIX}{module}", f"unet.{module}"}
            else:
                bare = module.removeprefix("text_model.")
                flat = (bare if bare == "text_projection" else f"text_model.{bare}",)
                prefixes = (f"{part}.", peft_config.PREFIX)
                spellings = {prefix + name for prefix in prefixes for name in (bare, *flat)}
            for prefix in _SCRIPTS_PREFIX[part]:
                spellings |= {prefix + name.replace(".", "_") for name in flat}
            for name in spellings:
                names[name].append(target)
    return names


def _split(key: str) -> tuple[str, str | None]:
    """The module and the factor that a key names; None for a factor that is not known."""
    if match := _PROCESSOR.fullmatch(key):
        head, which, side = match.groups()
        if "self_attn" in head:
            return f"{head}.{_TEXT_NAMES[which]}", side
        return f"{head}.to_{which}" + (".0" if which == "out" else ""), side
    for suffix in _SUFFIXES:
        if key.endswith("." + suffix):
            return key[: -len(suffix) - 1], _FACTORS[suffix]
    return key, None


class _Product(NamedTuple):
    """Factors known to fit, not yet multiplied."""

    rank: int
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


@np.errstate(all="ignore")  # what is not finite is found once it is applied
def difference(factors: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """What an adapter adds to a weight of `shape` at strength 1, DoRA aside.

    Raises SdjaxError where factors are missing or not those of such a weight.
    """
    try:
        product = _product(factors, shape)
        delta = product.make().reshape(shape)
        alpha = factors["alpha"].item() if "alpha" in factors else product.rank
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, SdjaxError):
            raise
        shapes = ", ".join(f"{name} {array.shape}" for name, array in factors.items())
        raise SdjaxError(f"an adapter's factors do not fit together: {shapes}") from error
    scale = factors.get("scale", alpha / product.rank if product.rank else 1.0)
    return np.float32(scale) * delta


def _product(factors: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> _Product:
    names = set(factors)
    if {"down", "up"} <= names:
        product = _low_rank(factors["up"], factors["down"], factors.get("mid"))
    elif {"w1_a", "w1_b", "w2_a", "w2_b"} <= names:
        product, other = (_lycoris(factors, f"w{i}", f"t{i}") for i in "12")
        _check_shape(other.shape, shape)
        make = product.make
        product = product._replace(make=lambda: make().reshape(shape) * other.make().reshape(shape))
    elif all(f"k_{w}" in names or {f"k_{w}_a", f"k_{w}_b"} <= names for w in ("w1", "w2")):
        product = _kronecker(_lycoris(factors, "k_w1"), _lycoris(factors, "k_w2", "k_t2"))
    else:
        raise SdjaxError(
            f"an adapter's factors are not whole: found only {', '.join(sorted(names))}"
        )
    _check_shape(product.shape, shape)
    return product


def _check_shape(found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """SdjaxError unless a difference is one of a weight [out, in, …]: so, or [out, in · …].

    A linear layer may be written as a 1 × 1 convolution, and the other way round.
    """
    rows, *columns = shape
    bare = [_without_ones(axes) for axes in (shape, (rows, math.prod(columns)))]
    if _without_ones(found) not in bare:
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


@np.errstate(all="ignore")
def adapted(weight: np.ndarray, adapters) -> np.ndarray:
    """A weight [out, in, …], float32, with adapters given as (factors, strength).

    Differences times their strength add up; a DoRA then gives each row (or column) of the sum the
    length it learned, of whichever strength, as peft and diffusers do.
    """
    result = weight
    for factors, strength in adapters:
        result = result + np.float32(strength) * difference(factors, weight.shape)
        learned = lengths(factors, weight.shape)
        if learned is not None:
            axes = tuple(i for i in range(weight.ndim) if learned.shape[i] == 1)
            result = result * (learned / np.sqrt((result**2).sum(axis=axes, keepdims=True)))
    return result
