"""What is drawn from the seeds of images, as PyTorch on a CPU draws it or by JAX."""

from collections.abc import Mapping

import jax
import numpy as np

from sdjax.diffusion import Table
from sdjax.diffusion.torch_noise import rows_of_noise, torch_images
from sdjax.errors import SdjaxError

Shape = tuple[int, int, int]

# Sampler rows fold in their small index: the largest numbers keep these draws apart from them.
_FOLDED = {"start": 0xFFFFFFFF, "image": 0xFFFFFFFE, "masked": 0xFFFFFFFD, "small": 0xFFFFFFFC}


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


def draw(
    seeds: np.ndarray, table: Table, source: str, shapes: Mapping[str, Shape], latents: Shape
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """(what `shapes` names, [N, h, w, C] each; noise of the table's rows [N, rows, h, w, C]).

    float32 of unit variance, each image's from its own seed, in the order of `shapes`. source:
    "torch" draws as PyTorch on a CPU does; "jax" with JAX's generator, the rows' inside the
    program: None here. latents: shape [h, w, C] of an image's.
    """
    if source == "torch":
        drawn = torch_images(seeds, [*shapes.values(), *[latents] * len(table.noise_rows)])
        rows = rows_of_noise(table, drawn[len(shapes) :], (len(seeds), *latents))
        return dict(zip(shapes, drawn, strict=False)), rows.swapaxes(0, 1)
    keys = jax.random.wrap_key_data(key_data(seeds))
    drawn = {}
    for name, shape in shapes.items():
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(_FOLDED[name]))
        drawn[name] = np.stack([jax.random.normal(key, shape) for key in own])
    return drawn, None
