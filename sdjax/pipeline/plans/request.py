"""What a caller asks for, each argument checked before anything is loaded or compiled."""

import dataclasses
import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sdjax.diffusion.samplers import check_options, option_names
from sdjax.errors import SdjaxError
from sdjax.pipeline.given.arguments import (
    Check,
    array,
    choice,
    number,
    number_list,
    optional,
    pair,
    plain_number,
    refuse,
    sides,
    switch,
    switch_or_function,
    text,
    texts,
    whole,
)
from sdjax.pipeline.given.inputs import Pictures, picture_list
from sdjax.pipeline.given.presets import filled, known_preset
from sdjax.pipeline.given.regions import Region, regions
from sdjax.pipeline.given.tiling import window_sides
from sdjax.pipeline.model.adapted import Adapted
from sdjax.pipeline.results.previews import Preview, Show, preview
from sdjax.pipeline.results.safety import SafetyChecker, checker
from sdjax.pipeline.steering.base import Steering, steerings
from sdjax.text.chunks import Weighting, check_weighting
from sdjax.words import hint

Prompt = str | Sequence[str]
WAYS = (
    "latent", "latent-bicubic", "latent-nearest", "lanczos", "bicubic", "bilinear", "nearest"
)  # fmt: skip
"""How what a first pass made is enlarged."""


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


def _weighting(name: str, value: object) -> Weighting | None:
    check_weighting(value)
    return value


def _model(name: str, value: object) -> Adapted:
    """A StableDiffusion."""
    if not isinstance(value, Adapted):
        refuse(name, "a StableDiffusion, which from_pretrained reads", value)
    return value


def _argument(check: Check, default=dataclasses.MISSING):
    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass
class Request:
    """The arguments of `StableDiffusion.generate`, which says what they mean, one a line: how it is
    checked, and its default. An SdjaxError names the one that is wrong. Nothing of a model is
    known here; `plan` checks what depends on it.
    """

    prompt: Prompt | None = _argument(optional(texts), None)
    negative_prompt: Prompt | None = _argument(optional(texts), None)
    prompt_2: Prompt | None = _argument(optional(texts), None)
    negative_prompt_2: Prompt | None = _argument(optional(texts), None)
    preset: str | None = _argument(optional(known_preset), None)
    weighting: Weighting | None = _argument(_weighting, "a1111")
    steps: int | None = _argument(optional(whole(1)), None)
    guidance_scale: float | Sequence[float] | None = _argument(optional(number_list()), None)
    first_guidance_scale: float | None = _argument(optional(number()), None)
    guidance_rescale: float = _argument(number(0, 1), 0.0)
    sampler: str | None = _argument(optional(text), None)
    seed: int | Sequence[int] | None = _argument(optional(_seed), 0)
    variation_seed: int | Sequence[int] | None = _argument(optional(_seed), None)
    variation_strength: float | None = _argument(optional(number(0, 1)), None)
    count: int = _argument(whole(1), 1)
    frames: int | None = _argument(optional(whole(1)), None)
    frame_windows: int | tuple[int, int] | None = _argument(optional(window_sides), None)
    seconds: float | None = _argument(optional(number(0)), None)
    fps: float | None = _argument(optional(number(0.1, 1000)), None)
    motion_bucket: float | None = _argument(optional(number(0)), None)
    noise_augmentation: float | None = _argument(optional(number(0)), None)
    height: int | None = _argument(optional(whole()), None)
    width: int | None = _argument(optional(whole()), None)
    image: Pictures | None = _argument(optional(picture_list("RGB")), None)
    strength: float | Sequence[float] | None = _argument(optional(number_list(0, 1)), None)
    mask: Pictures | None = _argument(optional(picture_list("L")), None)
    mask_blur: float | None = _argument(optional(number(0)), None)
    only_masked: int | None = _argument(optional(whole()), None)
    paste: bool = _argument(switch, True)
    extend: tuple[int, int, int, int] | None = _argument(optional(sides), None)
    image_guidance_scale: float | None = _argument(optional(number()), None)
    depth: Pictures | None = _argument(optional(picture_list("F")), None)
    controls: Sequence[Steering] = _argument(steerings, ())
    regions: Sequence[Region] = _argument(regions, ())
    noise_level: int | None = _argument(optional(whole()), None)
    original_size: tuple[int, int] | None = _argument(optional(pair(1)), None)
    crop: tuple[int, int] | None = _argument(optional(pair()), None)
    target_size: tuple[int, int] | None = _argument(optional(pair(1)), None)
    aesthetic_score: float | None = _argument(optional(number()), None)
    negative_original_size: tuple[int, int] | None = _argument(optional(pair(1)), None)
    negative_crop: tuple[int, int] | None = _argument(optional(pair()), None)
    negative_target_size: tuple[int, int] | None = _argument(optional(pair(1)), None)
    negative_aesthetic_score: float | None = _argument(optional(number()), None)
    tile: Literal["x", "y", "xy"] | None = _argument(optional(choice("x", "y", "xy")), None)
    reuse_every: int | None = _argument(optional(whole(1)), None)
    windows: int | tuple[int, int] | None = _argument(optional(window_sides), None)
    vae_tile: int | None = _argument(optional(whole()), None)
    vae_frames: int | None = _argument(optional(whole(1)), None)
    hires: float | None = _argument(optional(number(1)), None)
    hires_strength: float | None = _argument(optional(number(0, 1)), None)
    hires_steps: int | None = _argument(optional(whole(1)), None)
    hires_by: str | None = _argument(optional(choice(*WAYS)), None)
    refiner: Adapted | None = _argument(optional(_model), None)
    handoff: float | None = _argument(optional(number(0, 1)), None)
    latents: np.ndarray | None = _argument(optional(array), None)
    noise: Literal["torch", "jax"] | None = _argument(optional(choice("torch", "jax")), None)
    clip_skip: int = _argument(whole(), 0)
    batch_size: int | None = _argument(optional(whole(1)), None)
    output: Literal["pil", "numpy", "latents"] = _argument(choice("pil", "numpy", "latents"), "pil")
    progress: bool | Callable[[int, int], None] = _argument(switch_or_function, True)
    preview: Preview | Show | None = _argument(optional(preview), None)
    safety_checker: SafetyChecker | None = _argument(optional(checker), None)
    options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"check": _options}
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = field.metadata["check"](field.name, getattr(self, field.name))
            setattr(self, field.name, value)
        self.unsaid = self.prompt is None
        if self.unsaid and self.image is None:
            refuse("prompt", "text, or a list of texts", None)
        if self.unsaid:
            self.prompt = [""] * len(self.image)
        if self.preset is not None:
            for name, value in filled(self.preset, vars(self)).items():
                setattr(self, name, value)
        check_options(self.sampler, self.options)
        count = len(self.prompt)
        self.negatives = one_each("negative_prompt", self.negative_prompt, count)
        self.prompts_2 = one_each("prompt_2", self.prompt_2, count)
        self.negatives_2 = one_each("negative_prompt_2", self.negative_prompt_2, count)
        self._check_variations()
        check_seeds("seed", self.seed, 1 if self._varies_one else self.total)

    def _check_variations(self) -> None:
        for name in ("variation_seed", "variation_strength"):
            given = [n for n in ("variation_seed", "variation_strength") if n != name][0]
            if getattr(self, name) is None and getattr(self, given) is not None:
                raise SdjaxError(f"{given} goes with {name}: give both")
        if self.variation_seed is not None:
            if self.latents is not None:
                raise SdjaxError("variation_seed is for drawn noise: leave latents out")
            check_seeds("variation_seed", self.variation_seed, self.total)

    @property
    def _varies_one(self) -> bool:
        """Whether the images are variations of one picture, not of one each."""
        return self.variation_seed is not None and not isinstance(self.seed, list)

    # Seeds are made when asked for: a plan refuses more images than the memory holds.

    @functools.cached_property
    def seeds(self) -> np.ndarray:
        """uint64[total]."""
        if self._varies_one:
            return np.repeat(seeds_of(self.seed, 1), self.total)
        return seeds_of(self.seed, self.total)

    @functools.cached_property
    def variations(self) -> np.ndarray | None:
        """The seed that each image is varied towards, uint64[total]."""
        if self.variation_seed is None:
            return None
        return seeds_of(self.variation_seed, self.total)

    @property
    def total(self) -> int:
        """Images in all."""
        return len(self.prompt) * self.count


ARGUMENTS = {field.name for field in dataclasses.fields(Request)} - {"options"}
"""Names of the arguments of `generate`, the sampler's options aside."""


def one_each(name: str, texts: Sequence[str] | None, prompts: int) -> list[str | None]:
    """A text of the argument `name`, or None, for each prompt."""
    texts = [None] if texts is None else list(texts)
    if len(texts) not in (1, prompts):
        raise SdjaxError(
            f"{name} must be one or one a prompt: {prompts} prompts, {len(texts)} "
            f"{name.replace('_', ' ')}s"
        )
    return texts * prompts if len(texts) == 1 else texts


def check_seeds(name: str, seed: int | Sequence[int] | None, total: int) -> None:
    """SdjaxError where a seed is missing for an image, or the last would be too large."""
    if isinstance(seed, list) and len(seed) != total:
        raise SdjaxError(f"{name} must be one number or {total}, one an image, got {len(seed)}")
    if isinstance(seed, int) and seed + total > 2**64:
        raise SdjaxError(
            f"a seed must lie in 0 … 2^64 - 1, got {seed + total - 1} for the last image"
        )


def seeds_of(seed: int | Sequence[int] | None, total: int) -> np.ndarray:
    """One seed an image, uint64[total]: seed, seed + 1, … or those given; None draws the first.

    What is drawn has 32 bits, so that other programs take it too.
    """
    if isinstance(seed, list):
        return np.array(seed, np.uint64)
    first = secrets.randbits(32) if seed is None else seed
    return np.uint64(first) + np.arange(total, dtype=np.uint64)
