"""Low-rank adapters: what each format adds to which weight.

LoRA (Hu et al. 2021, arXiv:2106.09685), LoCon, LoHa and LoKr (Yeh et al. 2023, arXiv:2309.14859)
and DoRA's magnitudes (Liu et al. 2024, arXiv:2402.09353), in the names of sd-scripts (diffusers'
or SGM's block names), peft and old diffusers. Weights are in PyTorch's layout here.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights import original
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
    alphas: Mapping[str, float] | None = None,
) -> Adapter:
    """Finds the target of every tensor of an adapter file.

    alphas: for each part, the alpha of factors that come without one; their rank by default.
    targets: for each part, the shape of every weight by its state-dict key. layers:
    residual blocks a level, for SGM's block names.
    Raises SdjaxError where no tensor finds a target or a factor is missing.
    """
    names = module_names(targets, layers)
    found: dict[Target, dict[str, LazyTensor]] = defaultdict(dict)
    unused = []
    for key, tensor in state.items():
        module, factor = _split(key)
        target = names.get(module) if factor else None
        if target is None:
            unused.append(key)
        else:
            found[target][factor] = tensor
    if not found:
        raise SdjaxError(
            f"no tensor of the adapter fits this model: its {len(state)} keys begin with "
            f"{', '.join(sorted(state)[:2])}"
        )
    factors = {
        target: {name: tensor.load().astype(np.float32) for name, tensor in parts.items()}
        for target, parts in found.items()
    }
    for (part, key), parts in factors.items():
        if alphas and part in alphas and "alpha" not in parts:
            parts["alpha"] = np.float32(alphas[part])
        difference(parts, targets[part][key])  # raises where the factors do not fit
    return Adapter(factors, tuple(unused))


def module_names(targets, layers: int) -> dict[str, Target]:
    """Every name that the formats give to a module, to its weight."""
    names = {}
    for part, weights in targets.items():
        for key in weights:
            if not key.endswith(".weight"):
                continue
            target, module = (part, key), key.removesuffix(".weight")
            if part == "unet":
                level = re.match(r"up_blocks\.(\d+)\.upsamplers", module)
                attended = level and f"up_blocks.{level[1]}.attentions.0.proj_in.weight" in weights
                there = original.unet_to_original(key, layers, bool(attended))
                flat = (module, there.removesuffix(".weight"))
                spellings = {module, f"base_model.model.{module}", f"unet.{module}"}
            else:
                bare = module.removeprefix("text_model.")
                flat = (bare if bare == "text_projection" else f"text_model.{bare}",)
                spellings = {f"{part}.{name}" for name in (bare, *flat)}
            for prefix in _SCRIPTS_PREFIX[part]:
                spellings |= {prefix + name.replace(".", "_") for name in flat}
            for name in spellings:
                names.setdefault(name, target)
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


def difference(factors: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """What an adapter adds to a weight of `shape` at strength 1, DoRA aside."""
    names = set(factors)
    if {"down", "up"} <= names:
        rank, delta = factors["down"].shape[0], _lora(factors)
    elif {"w1_a", "w1_b", "w2_a", "w2_b"} <= names:
        rank = factors["w1_b"].shape[0]
        halves = [_hadamard_half(factors, i) for i in ("1", "2")]
        delta = halves[0] * halves[1]
    elif names & {"k_w1", "k_w1_a"} and names & {"k_w2", "k_w2_a"}:
        rank, delta = _kronecker(factors)
    else:
        raise SdjaxError(f"an adapter's factors are not whole: found only {', '.join(names)}")
    alpha = factors["alpha"].item() if "alpha" in factors else rank
    if delta.size != math.prod(shape):
        raise SdjaxError(
            f"the adapter is of another model: it changes a weight of {math.prod(shape)} numbers "
            f"by {delta.size}"
        )
    scale = alpha / rank if rank else 1.0
    return np.float32(scale) * delta.reshape(shape)


def _lora(factors) -> np.ndarray:
    down, up = factors["down"], factors["up"]
    if "mid" in factors:  # Tucker: up · mid · down, mid being the spatial kernel
        return np.einsum(
            "or,rskl,si->oikl", up.reshape(len(up), -1), factors["mid"], down.reshape(len(down), -1)
        )
    return up.reshape(len(up), -1) @ down.reshape(len(down), -1)


def _hadamard_half(factors, index: str) -> np.ndarray:
    a, b = factors[f"w{index}_a"], factors[f"w{index}_b"]
    if f"t{index}" in factors:
        return np.einsum("rskl,ro,si->oikl", factors[f"t{index}"], a, b)
    return a @ b


def _kronecker(factors) -> tuple[int, np.ndarray]:
    """(rank, w1 ⊗ w2), either factor whole or itself of low rank."""
    rank = 0
    if "k_w1" in factors:
        first = factors["k_w1"]
    else:
        first, rank = factors["k_w1_a"] @ factors["k_w1_b"], factors["k_w1_b"].shape[0]
    if "k_w2" in factors:
        second = factors["k_w2"]
    elif "k_t2" in factors:
        a, b = factors["k_w2_a"], factors["k_w2_b"]
        second, rank = np.einsum("rskl,ro,si->oikl", factors["k_t2"], a, b), b.shape[0]
    else:
        a, b = factors["k_w2_a"], factors["k_w2_b"]
        second, rank = a @ b.reshape(len(b), -1), b.shape[0]
    if second.ndim > 2:
        first = first.reshape(*first.shape, *(1,) * (second.ndim - 2))
    return rank, np.kron(first, second)


def adapted(weight: np.ndarray, adapters) -> np.ndarray:
    """A weight [out, in, …], float32, with adapters given as (factors, strength).

    Low-rank differences add up; a DoRA then replaces the length of each row (or column) of the
    sum by the one it learned, by its strength.
    """
    result = weight
    for factors, strength in adapters:
        whole = result + difference(factors, weight.shape)
        learned = factors.get("magnitude", factors.get("dora_scale"))
        if learned is not None:
            # peft's lengths are those of rows; sd-scripts' shape tells.
            rows = "magnitude" in factors or learned.shape[0] == weight.shape[0]
            axes = tuple(i for i in range(weight.ndim) if i != (0 if rows else 1))
            length = np.sqrt((whole**2).sum(axis=axes, keepdims=True))
            whole = whole * (learned.reshape(length.shape) / length)
        result = result + np.float32(strength) * (whole - result)
    return result
