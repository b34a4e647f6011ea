"""What is drawn from the seeds of images, as PyTorch on a CPU draws it or by JAX."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from sdjax.diffusion import Table
from sdjax.diffusion.torch_noise import rows_of_noise, torch_images
from sdjax.errors import SdjaxError

Shape = tuple[int, ...]
PARALLEL = 0.9995  # the cosine from which on two columns of noise count as parallel

# Sampler rows fold in their small index: the largest numbers keep these draws apart from them.
_FOLDED = {"start": 0xFFFFFFFF, "image": 0xFFFFFFFE, "masked": 0xFFFFFFFD, "small": 0xFFFFFFFC}
_FOLDED["pixels"] = 0xFFFFFFFB
_FOLDED_TURN = 0xFFFFFF00


def key_data(seeds: np.ndarray, turn: int = 0) -> np.ndarray:
    """The data of `jax.random.key(seed)` for each seed, uint32[N, 2].

    turn: 1 for another table that goes on after a first one, with keys of its own.
    """
    data = np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)
    if not turn:
        return data
    keys = jax.random.wrap_key_data(data)
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(_FOLDED_TURN + turn))
    return np.asarray(jax.random.key_data(folded))


def later_rows(
    seeds: np.ndarray, before: Sequence[Sequence[Shape]], tables: Sequence[Table], latents: Shape
) -> np.ndarray:
    """The noise of the tables' rows [N, rows, h, w, C], as PyTorch draws it after arrays of the
    shapes `before`; each image has its own."""
    made = []
    for seed, shapes, table in zip(seeds, before, tables, strict=True):
        wanted = [*shapes, *[latents] * len(table.noise_rows)]
        drawn = torch_images([seed], wanted)[len(shapes) :]
        made.append(rows_of_noise(table, drawn, (1, *latents))[:, 0])
    return np.stack(made)


def noise_source(source: str | None, tables: Sequence[Table], in_turn: bool) -> str:
    """"torch" or "jax"; None is "torch" without its promise of diffusers' numbers.

    in_turn: whether diffusers draws the sampler's noise in turn.
    """
    if source == "torch" and not in_turn and any(table.noise_rows.size for table in tables):
        raise SdjaxError(
            "noise='torch' promises diffusers' picture, but what this sampler adds is not drawn "
            "from the seed there: leave noise out, or choose another sampler"
        )
    return source or "torch"


def varied(
    noise: np.ndarray, seeds: np.ndarray, strength: float, source: str, shape: Shape
) -> np.ndarray:
    """Noise [N, *shape] on the way to what other seeds begin with, float32.

    strength: 0 is the noise, 1 the other. Between them the directions of its columns turn at an
    even rate, as A1111 has it (its `slerp` along the height); where two columns are parallel, or
    opposite, they are mixed.
    """
    if source == "torch":
        (other,) = torch_images(seeds, [shape])
    else:
        other = _by_key(seeds, "start", shape)
    unit, other_unit = (x / np.linalg.norm(x, axis=-3, keepdims=True) for x in (noise, other))
    cosine = (unit * other_unit).sum(axis=-3, keepdims=True)
    parallel = np.abs(cosine) > PARALLEL
    angle = np.arccos(np.where(parallel, 0, cosine))
    shares = np.float32([1 - strength, strength])
    weights = (np.where(parallel, s, np.sin(s * angle) / np.sin(angle)) for s in shares)
    return sum(w * x for w, x in zip(weights, (noise, other), strict=True))


def _by_key(seeds: np.ndarray, name: str, shape: Shape) -> np.ndarray:
    """What JAX draws for each seed under a name of `_FOLDED`, float32 [N, *shape]."""
    keys = jax.random.wrap_key_data(key_data(seeds))
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(_FOLDED[name]))
    return np.stack([jax.random.normal(key, shape) for key in own])


def draw(
    seeds: np.ndarray,
    tables: Sequence[Table],
    source: str,
    shapes: Sequence[Mapping[str, Shape]],
    latents: Shape,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """(what `shapes` name, [N, h, w, C] each; noise of the tables' rows [N, rows, h, w, C]).

    float32 of unit variance, each image's from its own seed, in the order of its `shapes`, and
    zeros where it does not have one that others have. source: "torch" draws as PyTorch on a CPU
    does; "jax" with JAX's generator, the rows' inside the program: None here. tables: each
    image's. latents: shape [h, w, C] of an image's.
    """
    drawn = {name: np.zeros((len(seeds), *shape), np.float32)
             for own in shapes for name, shape in own.items()}  # fmt: skip
    if source == "torch":
        size = max(len(table.rows.kind) for table in tables)
        rows = np.zeros((len(seeds), size, *latents), np.float32)
        for i, (seed, table, own) in enumerate(zip(seeds, tables, shapes, strict=True)):
            wanted = [*own.values(), *[latents] * len(table.noise_rows)]
            made = [one[0] for one in torch_images([seed], wanted)]
            for name, one in zip(own, made, strict=False):
                drawn[name][i] = one
            rows[i, table.noise_rows] = np.reshape(made[len(own) :], (-1, *latents))
        return drawn, rows
    for i, own in enumerate(shapes):
        for name, shape in own.items():
            drawn[name][i] = _by_key(seeds[i : i + 1], name, shape)[0]
    return drawn, None
