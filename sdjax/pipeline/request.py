"""What a caller asks for, checked and made into arrays, before anything is compiled."""

from collections.abc import Sequence

import jax
import numpy as np

from sdjax.diffusion import Table, torch_noise
from sdjax.errors import SdjaxError

Prompt = str | Sequence[str]


def listed(prompt: Prompt, name: str = "prompt") -> list[str]:
    """A list of at least one prompt."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise SdjaxError(f"{name} is an empty list: give at least one prompt")
    for one in prompts:
        if not isinstance(one, str):
            raise SdjaxError(f"{name} must be text, got {one!r}")
    return prompts


def negatives_of(negative_prompt: Prompt | None, prompts: Sequence[str]) -> list[str | None]:
    """A negative prompt, or None, for each prompt."""
    if negative_prompt is None:
        return [None] * len(prompts)
    negatives = listed(negative_prompt, "negative_prompt")
    if len(negatives) == 1:
        return negatives * len(prompts)
    if len(negatives) != len(prompts):
        raise SdjaxError(
            f"negative_prompt must be one or one a prompt: {len(prompts)} prompts, "
            f"{len(negatives)} negative prompts"
        )
    return negatives


def seeds_of(seed: int | Sequence[int], total: int) -> np.ndarray:
    """One seed an image, uint64[total]: seed, seed + 1, … or those given."""
    seeds = list(seed) if np.ndim(seed) else [seed + i for i in range(total)]
    if len(seeds) != total:
        raise SdjaxError(f"seed must be one number or {total}, one an image, got {len(seeds)}")
    for one in seeds:
        if not 0 <= int(one) < 2**64:
            raise SdjaxError(f"a seed must lie in 0 … 2^64 - 1, got {one}")
    return np.array([int(one) for one in seeds], np.uint64)


def key_data(seeds: np.ndarray) -> np.ndarray:
    """The data of `jax.random.key(seed)` for each seed, uint32[N, 2]."""
    return np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)


def noise_source(source: str | None, table: Table, in_turn: bool) -> str:
    """"torch" or "jax"; None is "torch" without its promise of diffusers' numbers.

    in_turn: whether diffusers draws the sampler's noise in turn.
    """
    if source not in (None, "torch", "jax"):
        raise SdjaxError(f"noise must be torch or jax, got {source!r}")
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
