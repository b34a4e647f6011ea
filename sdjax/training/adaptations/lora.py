"""Low-rank changes of weights: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError, check_at_least
from sdjax.models.quantized import Raised, is_narrow, whole
from sdjax.weights.names import state_key

from . import lora_files
from .adaptation import Adaptation

_GROUPS = ("transformers", "attention", "convolutions")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
_CONVOLUTIONS = ("resnets.", "downsamplers.", "upsamplers.")


@dataclass(frozen=True)
class LoRA(Adaptation):
    """W + alpha / rank · up · down for chosen weights W; up begins at zero."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("transformers",)
    """Which weights: "transformers" (all linear layers and 1x1 convolutions of the U-Net's
    transformers and of the text encoders' layers, as sd-scripts has it), "attention" (queries,
    keys, values and outputs, as diffusers' scripts have it), "convolutions" (all weights of
    residual blocks and resizing), or ends of modules' names, such as "attn2.to_k"."""
    conv_rank: int = 0
    """Rank of 3x3 convolutions; above 0 the convolutions are targets too, as in sd-scripts. With 0
    those that are targets have `rank`."""
    conv_alpha: float = 1.0
    """Alpha of 3x3 convolutions, where `conv_rank` is above 0."""
    dora: bool = False
    """Learn the length of each output's weights apart from their direction."""
    rank_dropout: float = 0.0
    """Share of the ranks of each weight that are left out of a step, the others grown for it."""
    unet: bool = True
    text_encoder: bool = False
    """Whether the text encoders are adapted, both of SDXL."""
    text_encoder_learning_rate: float | None = None
    """Of the text encoders; None for the run's own."""
    up_learning_rate_ratio: float = 1.0
    """Learning rate of `up` over that of `down` (LoRA+, arXiv 2402.12354; 16 there)."""

    def __post_init__(self):
        check_at_least(1, self, "rank")
        check_at_least(0, self, "conv_rank")
        for name in ("alpha", "conv_alpha", "up_learning_rate_ratio"):
            if not getattr(self, name) > 0:
                raise SdjaxError(f"adaptation.{name} must be above 0, got {getattr(self, name)}")
        rate = self.text_encoder_learning_rate
        if rate is not None and not rate > 0:
            raise SdjaxError(f"text_encoder_learning_rate must be above 0, got {rate}")
        if not 0 <= self.rank_dropout < 1:
            raise SdjaxError(f"rank_dropout must be in [0, 1), got {self.rank_dropout}")
        if not (self.unet or self.text_encoder):
            raise SdjaxError("nothing is adapted: set adaptation.unet or text_encoder")
        if not self.targets:
            raise SdjaxError("adaptation.targets is empty: expected names of weights")

    def rank_and_alpha(self, shape) -> tuple[int, float]:
        """Those of a kernel […, in, out]."""
        if self.conv_rank and len(shape) == 4 and shape[:2] != (1, 1):
            return self.conv_rank, self.conv_alpha
        return self.rank, self.alpha

    @property
    def trains_texts(self):
        """As the setting says."""
        return self.text_encoder

    def chosen(self, base) -> dict[str, list[tuple[str, ...]]]:
        """For each part the paths of the modules whose kernels are adapted.

        Raises SdjaxError where a target names none, or a rank is above a layer's width.
        """
        found, used = {}, set()
        groups = {*self.targets, *(["convolutions"] if self.conv_rank else [])}
        for part, tree in base.items():
            wanted = self.unet if part == "unet" else self.text_encoder
            if part == "vae" or not wanted:
                continue
            for path, kernel in flatten_dict(tree).items():
                if path[-1] != "kernel":
                    continue
                module = state_key(path).removesuffix(".weight")
                if matches := {group for group in groups if _named(group, module, part)}:
                    used |= matches
                    found.setdefault(part, []).append(path[:-1])
                    self._check_rank(kernel.shape, module)
        for target in self.targets:
            if target not in used:
                raise SdjaxError(
                    f"adaptation.targets: {target!r} names no weight of what is adapted; expected "
                    f"{', '.join(_GROUPS)}, or the end of a module's name such as 'attn2.to_k'"
                )
        return found

    def _check_rank(self, shape, module):
        rank, _ = self.rank_and_alpha(shape)
        widest = min(int(np.prod(shape[:-1])), shape[-1])
        if rank > widest:
            raise SdjaxError(
                f"a rank of {rank} is above what {module} can have, which is {widest}: choose a "
                "smaller one, or other targets"
            )

    def init(self, key, base):
        """down uniform as torch's layers begin, up zeros, and the magnitudes those of the base."""
        tree = {}
        for part, paths in self.chosen(base).items():
            flat = flatten_dict(base[part])
            own = {}
            for number, path in enumerate(paths):
                kernel = flat[(*path, "kernel")]
                rank, _ = self.rank_and_alpha(kernel.shape)
                inputs = int(np.prod(kernel.shape[:-1]))
                place = jax.random.fold_in(jax.random.fold_in(key, len(tree)), number)
                down = jax.random.uniform(
                    place, (*kernel.shape[:-1], rank), minval=-1, maxval=1
                ) / np.sqrt(inputs)
                own[(*path, "lora_down", "kernel")] = down
                ones = (1,) * (kernel.ndim - 2)
                own[(*path, "lora_up", "kernel")] = jnp.zeros((*ones, rank, kernel.shape[-1]))
                if self.dora:
                    own[(*path, "magnitude")] = _lengths(whole(kernel))
            tree[part] = unflatten_dict(own)
        return tree

    def apply(self, base, tree, key=None):
        """The base with the products added to its kernels; with DoRA in their learned lengths.

        To kernels of few bits they are added where the network uses them.
        The lengths of the sums count as constants for the gradient, as the paper has it.
        """
        parts = dict(base)
        for index, (part, own) in enumerate(tree.items()):
            flat, factors = flatten_dict(base[part]), flatten_dict(own)
            downs = [path[:-2] for path in factors if path[-2:] == ("lora_down", "kernel")]
            for number, path in enumerate(downs):
                kernel = flat[(*path, "kernel")]
                down = factors[(*path, "lora_down", "kernel")]
                up = factors[(*path, "lora_up", "kernel")]
                if self.rank_dropout and key is not None:
                    place = jax.random.fold_in(jax.random.fold_in(key, index), number)
                    kept = jax.random.bernoulli(place, 1 - self.rank_dropout, down.shape[-1:])
                    down = down * kept / (1 - self.rank_dropout)
                rank, alpha = self.rank_and_alpha(kernel.shape)
                up = up.reshape(up.shape[-2:])
                if is_narrow(kernel):  # added where it is used
                    lengths = factors[(*path, "magnitude")] if self.dora else None
                    flat[(*path, "kernel")] = Raised(kernel, down, (alpha / rank) * up, lengths)
                    continue
                result = kernel.astype(jnp.float32) + (alpha / rank) * (down @ up)
                if self.dora:
                    lengths = jax.lax.stop_gradient(_lengths(result))
                    result = result * (factors[(*path, "magnitude")] / lengths)
                flat[(*path, "kernel")] = result.astype(kernel.dtype)
            parts[part] = unflatten_dict(flat)
        return parts

    def rates(self, tree, learning_rate):
        """The text encoders' own rate, and a greater one of `up`."""
        text = self.text_encoder_learning_rate
        rates = {}
        for path in flatten_dict(tree):
            own = 1.0 if path[0] == "unet" or text is None else text / learning_rate
            ratio = self.up_learning_rate_ratio if "lora_up" in path else 1.0
            rates[path] = own * ratio
        return unflatten_dict(rates)

    def export(self, tree, folder, model, networks, dtype="float32", about=None):
        """Writes `lora.safetensors` as sd-scripts does, and `peft/` with a folder for each part and
        diffusers' own file of all."""
        del networks
        place = folder / "lora.safetensors"
        lora_files.write_sd_scripts(place, self, tree, model, dtype, about or {})
        lora_files.write_peft(folder / "peft", self, tree, dtype)
        return place


def _lengths(kernel):
    """Of the weights of each output, [out]."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))


def _named(target, module, part):
    """Whether a module is one of a target's."""
    if target == "transformers":
        return "attentions." in module if part == "unet" else ".layers." in module
    if target == "attention":
        return module.endswith(tuple(f".{name}" for name in _ATTENTION))
    if target == "convolutions":
        return part == "unet" and any(f".{name}" in module for name in _CONVOLUTIONS)
    return module == target or module.endswith(f".{target}")
