"""Orthogonal fine-tuning: adapters that rotate a weight's outputs or inputs.

OFT (Qiu et al. 2023, arXiv:2306.07280) as sd-scripts, LyCORIS and peft write it, and BOFT (Liu et
al. 2023, arXiv:2311.06243) as LyCORIS does. Weights are float32 in PyTorch's layout, [out, in, …].
"""

import math
from collections.abc import Mapping

import numpy as np

from sdjax.errors import SdjaxError


def _skew(blocks: np.ndarray) -> np.ndarray:
    return blocks - np.swapaxes(blocks, -1, -2)


def cayley(q: np.ndarray) -> np.ndarray:
    """The rotations (I + Q)(I − Q)⁻¹ of skew-symmetric blocks Q [..., b, b]."""
    identity = np.eye(q.shape[-1], dtype=q.dtype)
    return (identity + q) @ np.linalg.inv(identity - q)


def rotated_outputs(weight: np.ndarray, factors: Mapping, strength) -> np.ndarray:
    """A weight whose rows are rotated, in blocks (OFT) or in stages of a butterfly (BOFT).

    factors: oft_blocks [n, b, b] or [stages, n, b, b]; alpha, the bound of their norm for each row,
    0 for none; rescale, a factor for each row. As sd-scripts and LyCORIS do, the strength moves
    each rotation away from the identity, and rescaling is whole at any.
    """
    blocks, rows = factors["oft_blocks"], len(weight)
    if blocks.ndim not in (3, 4) or blocks.shape[-3] * blocks.shape[-1] != rows:
        raise SdjaxError(
            f"the adapter is of another model: it rotates blocks of shape {blocks.shape}, the "
            f"weight has {rows} rows"
        )
    q = _skew(blocks.astype(np.float64))
    bound = factors["alpha"].item() * rows if "alpha" in factors else 0
    norm = np.linalg.norm(q)
    if 0 < bound < norm:
        q = q * (bound / norm)
    identity = np.eye(q.shape[-1])
    rotations = (identity + strength * (cayley(q) - identity)).astype(np.float32)
    result = weight.reshape(rows, -1)
    if blocks.ndim == 3:
        result = np.einsum("knm,kni->kmi", rotations, result.reshape(*blocks.shape[:2], -1))
    else:
        for i, stage in enumerate(rotations):
            result = _butterfly(result, stage, 2**i * stage.shape[-1] // 2)
    result = result.reshape(weight.shape)
    if "rescale" in factors:
        result = result * factors["rescale"].reshape(rows, *(1,) * (weight.ndim - 1))
    return result


def _butterfly(rows: np.ndarray, rotations: np.ndarray, apart: int) -> np.ndarray:
    """Rows [out, …] rotated in blocks of such as stand `apart` rows from each other."""
    pairs = rows.reshape(-1, 2, apart, rows.shape[-1]).swapaxes(1, 2)
    blocks = pairs.reshape(*rotations.shape[:2], -1)
    turned = np.einsum("kij,kjp->kip", rotations, blocks)
    return turned.reshape(pairs.shape).swapaxes(1, 2).reshape(rows.shape)


def rotated_inputs(weight: np.ndarray, factors: Mapping, strength) -> np.ndarray:
    """A weight whose inputs are rotated in blocks, as peft does.

    factors: oft_R [n, b·(b−1)/2], the upper triangle of each block, or one for all; terms, how many
    of the Neumann series stand for the inverse, 0 for the inverse itself.
    """
    upper, columns = factors["oft_R"], math.prod(weight.shape[1:])
    count, entries = upper.shape
    size = (1 + math.isqrt(1 + 8 * entries)) // 2
    if size * (size - 1) // 2 != entries or columns % size or count not in (1, columns // size):
        raise SdjaxError(
            f"the adapter is of another model: its oft_R has shape {upper.shape}, the weight "
            f"{columns} columns"
        )
    q = np.zeros((count, size, size))
    q[:, *np.triu_indices(size, 1)] = upper
    q = _skew(q)
    identity = np.eye(size)
    # Without the series peft has the Cayley transform of −Q: the other way round.
    rotations = _neumann(q, int(factors["terms"])) if factors["terms"] else cayley(-q)
    rotations = (identity + strength * (rotations - identity)).astype(np.float32)
    blocks = weight.reshape(len(weight), columns // size, size)
    turned = np.einsum("kij,okj->oki", np.broadcast_to(rotations, (blocks.shape[1], size, size)),
                       blocks)  # fmt: skip
    return turned.reshape(weight.shape)


def _neumann(q: np.ndarray, terms: int) -> np.ndarray:
    """I + 2Q + 2Q² + … + Qⁿ: peft's series of (I + Q)(I − Q)⁻¹, whose last term counts once."""
    result = power = np.broadcast_to(np.eye(q.shape[-1]), q.shape)
    last = max(3, terms - 1) if terms > 2 else terms - 1
    for i in range(1, last + 1):
        power = power @ q
        result = result + (1 if i == last and terms > 2 else 2) * power
    return result
