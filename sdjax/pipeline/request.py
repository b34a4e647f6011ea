"""What a caller asks for, checked and made into arrays, before anything is compiled."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from sdjax import diffusion
from sdjax.diffusion import Table, torch_noise
from sdjax.diffusion.samplers import check_options, option_names
from sdjax.errors import SdjaxError
from sdjax.pipeline.arguments import (
    Check,
    array,
    choice,
    number,
    optional,
    plain_number,
    refuse,
    switch_or_function,
    text,
    texts,
    whole,
)
from sdjax.words import hint

Prompt = str | Sequence[str]
STEPS = 30  # of sampling, where neither their number nor a list of them is given


def _seed(name: str, value: object) -> int | list[int]:
    if plain_number(value) is None and not isinstance(value, str) and np.ndim(value) == 1:
        return [_one_seed(name, one) for one in value]
    return _one_seed(name, value)


def _one_seed(name: str, value: object) -> int:
    if plain_number(value) is None:
        refuse(name, "a whole number, a list of them, or None", value)
    seed = whole(least=-(2**64))(name, value)
    if not 0 <= seed < 2**64:
        raise SdjaxError(
            f"a seed must lie in 0 … 2^64 - 1, got {seed}; None (-1 on the command line) draws one"
        )
    return seed


def _options(name: str, value: Mapping[str, object]) -> dict[str, object]:
    """Those of the sampler; what is no argument at all is told by the word that is meant."""
    # A sampler's `strength` is how much of the way from a picture is gone.
    known = set(option_names()) - ARGUMENTS - {"strength"}
    for word in value:
        if word not in known:
            meant = hint(word, ARGUMENTS | known) or f"there are {', '.join(sorted(ARGUMENTS))}"
            raise SdjaxError(f"generate has no argument {word!r}: {meant}")
    return dict(value)


def _argument(check: Check, default=dataclasses.MISSING):
    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass
class Request:
    """The arguments of `StableDiffusion.generate`, which says what they mean, one a line: how it is
    checked, and its default. An SdjaxError names the one that is wrong. Nothing of a model is
    known here; `plan` checks what depends on it.
    """

    prompt: Prompt = _argument(texts)
    negative_prompt: Prompt | None = _argument(optional(texts), None)
    steps: int | None = _argument(optional(whole(1)), None)
    guidance_scale: float | None = _argument(optional(number()), None)
    guidance_rescale: float = _argument(number(0, 1), 0.0)
    sampler: str | None = _argument(optional(text), None)
    seed: int | Sequence[int] | None = _argument(optional(_seed), 0)
    count: int = _argument(whole(1), 1)
    height: int | None = _argument(optional(whole()), None)
    width: int | None = _argument(optional(whole()), None)
    latents: np.ndarray | None = _argument(optional(array), None)
    noise: Literal["torch", "jax"] | None = _argument(optional(choice("torch", "jax")), None)
    clip_skip: int = _argument(whole(), 0)
    batch_size: int | None = _argument(optional(whole(1)), None)
    output: Literal["pil", "numpy", "latents"] = _argument(choice("pil", "numpy", "latents"), "pil")
    progress: bool | Callable[[int, int], None] = _argument(switch_or_function, True)
    options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"check": _options}
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = field.metadata["check"](field.name, getattr(self, field.name))
            setattr(self, field.name, value)
        check_options(self.sampler, self.options)
        self.negatives = negatives_of(self.negative_prompt, self.prompt)
        self.seeds = seeds_of(self.seed, self.total)

    @property
    def total(self) -> int:
        """Images in all."""
        return len(self.prompt) * self.count


ARGUMENTS = {field.name for field in dataclasses.fields(Request)} - {"options"}
"""Names of the arguments of `generate`, the sampler's options aside."""


class Plan(NamedTuple):
    """A request as a certain model carries it out."""

    table: Table
    size: tuple[int, int]
    """Height and width in pixels."""
    shape: tuple[int, int, int]
    """Of an image's latents, [h, w, C]."""
    source: str
    """Who draws the noise, of `all_noise`."""
    guidance_scale: float


def plan(asked: Request, scheduler: Mapping, unet, vae, encoders, guidance_scale: float) -> Plan:
    """How a model carries a request out; SdjaxError where it cannot.

    scheduler: its scheduler_config.json. unet, vae, encoders: the configurations of its networks.
    guidance_scale: its own.
    """
    if unet.in_channels != vae.latent_channels:
        raise SdjaxError(
            f"this U-Net takes {unet.in_channels} channels, the latents have "
            f"{vae.latent_channels}: it needs an image condition and cannot make images from a "
            "prompt alone"
        )
    size = image_size(
        asked.height, asked.width, unet.sample_size or 512 // vae.downsampling, vae.downsampling
    )
    layers = min(encoder.num_hidden_layers for encoder in encoders)
    if asked.clip_skip >= layers:
        raise SdjaxError(
            f"clip_skip must be less than the text encoder's {layers} layers, got {asked.clip_skip}"
        )
    steps, lists = asked.steps, (asked.options.get(name) for name in ("timesteps", "sigmas"))
    if steps is None and all(given is None or isinstance(given, str) for given in lists):
        steps = STEPS
    table = diffusion.sampler_from_config(scheduler, steps, asked.sampler, **asked.options)
    in_turn = diffusion.drawn_in_turn(scheduler, asked.sampler)
    source = noise_source(asked.noise, table, in_turn)
    shape = (*(side // vae.downsampling for side in size), vae.latent_channels)
    if asked.latents is not None and asked.latents.shape != (asked.total, *shape):
        raise SdjaxError(
            f"latents must have shape {(asked.total, *shape)}, got {asked.latents.shape}"
        )
    own = asked.guidance_scale is None
    return Plan(table, size, shape, source, guidance_scale if own else asked.guidance_scale)


def negatives_of(negatives: Sequence[str] | None, prompts: Sequence[str]) -> list[str | None]:
    """A negative prompt, or None, for each prompt."""
    if negatives is None:
        return [None] * len(prompts)
    if len(negatives) == 1:
        return list(negatives) * len(prompts)
    if len(negatives) != len(prompts):
        raise SdjaxError(
            f"negative_prompt must be one or one a prompt: {len(prompts)} prompts, "
            f"{len(negatives)} negative prompts"
        )
    return list(negatives)


def seeds_of(seed: int | Sequence[int] | None, total: int) -> np.ndarray:
    """One seed an image, uint64[total]: seed, seed + 1, … or those given; None draws the first.

    What is drawn has 32 bits, so that other programs take it too.
    """
    seed = secrets.randbits(32) if seed is None else seed
    seeds = seed if isinstance(seed, list) else [seed + i for i in range(total)]
    if len(seeds) != total:
        raise SdjaxError(f"seed must be one number or {total}, one an image, got {len(seeds)}")
    if seeds[-1] >= 2**64:
        raise SdjaxError(f"a seed must lie in 0 … 2^64 - 1, got {seeds[-1]} for the last image")
    return np.array(seeds, np.uint64)


def key_data(seeds: np.ndarray) -> np.ndarray:
    """The data of `jax.random.key(seed)` for each seed, uint32[N, 2]."""
    return np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)


def noise_source(source: str | None, table: Table, in_turn: bool) -> str:
    """"torch" or "jax"; None is "torch" without its promise of diffusers' numbers.

    in_turn: whether diffusers draws the sampler's noise in turn.
    """
    if source == "torch" and not in_turn and table.noise_rows.size:
        raise SdjaxError(
            "noise='torch' promises diffusers' picture, but what this sampler adds is not drawn "
            "from the seed there: leave noise out, or choose another sampler"
        )
    return source or "torch"


def all_noise(
    seeds: np.ndarray, table: Table, shape: tuple[int, int, int], source: str, start: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(noise to start from [N, h, w, C], noise of the table's rows [N, rows, h, w, C]), float32.

    Of unit variance, each image's from its own seed. source: "torch" draws as PyTorch on a CPU
    does, "jax" with JAX's generator, the rows' inside the program: None here. start: False draws
    nothing to start from, and gives None for it.
    """
    if source == "torch":
        first, rows = torch_noise(seeds, table, shape, start=start)
        return first, rows.swapaxes(0, 1)
    if not start:
        return None, None
    keys = jax.random.wrap_key_data(key_data(seeds))
    # Sampler rows fold in their small index: the largest number keeps this draw apart from them.
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(0xFFFFFFFF))
    return np.stack([jax.random.normal(key, shape) for key in keys]), None


def image_size(
    height: int | None, width: int | None, trained: int | tuple[int, int], factor: int
) -> tuple[int, int]:
    """Height and width in pixels; None is the size trained at, `trained` latents of `factor`."""
    default = trained if isinstance(trained, tuple) else (trained, trained)
    size = tuple(
        side * factor if given is None else given
        for given, side in zip((height, width), default, strict=True)
    )
    for name, side in zip(("height", "width"), size, strict=True):
        if side < factor or side % factor:
            nearest = max(1, round(side / factor)) * factor
            raise SdjaxError(
                f"{name} must be a multiple of {factor}, got {side}; the nearest is {nearest}"
            )
    return size
