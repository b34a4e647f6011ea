"""A small network that hears which digit is spoken and by whom, trained on recordings alone."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from sdjax.models.layers import Conv, Dense
from sdjax.models.norms import GroupNorm

WIDTHS = (16, 32, 64, 64)
BATCH = 64
RATE = 2e-3
DROPOUT = 0.3
SMOOTHED = 0.05  # of the targets
GAIN, NOISE, MASKED = 0.1, 0.02, 8  # of grey values in 0 … 1; bins and frames at most


class Network(nn.Module):
    """Spectrograms [B, 64, 64, 1] in 0 … 1 to logits ([B, 10] of digits, [B, S] of speakers)."""

    speakers: int

    @nn.compact
    def __call__(self, x, train=False):
        for i, width in enumerate(WIDTHS):
            x = Conv(width, 3, stride=2, name=f"conv.{i}")(x)
            x = GroupNorm(8, 1e-5, silu=True, name=f"norm.{i}")(x)
        x = nn.Dropout(DROPOUT, deterministic=not train)(x.reshape(len(x), -1))
        return Dense(10, name="digit")(x), Dense(self.speakers, name="speaker")(x)


class Reader(NamedTuple):
    """A trained network: pictures uint8 [N, 64, 64, 3] to (digits int[N], speakers int[N])."""

    params: dict
    speakers: tuple[str, ...]

    def __call__(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [
            _read(self.params, np.float32(pictures[i : i + BATCH, ..., :1]) / 255, self.speakers)
            for i in range(0, len(pictures), BATCH)
        ]
        return tuple(np.concatenate(part) for part in zip(*found, strict=True))


@functools.partial(jax.jit, static_argnums=2)
def _read(params, x, speakers):
    logits = Network(len(speakers)).apply({"params": params}, x)
    return tuple(part.argmax(-1) for part in logits)


def trained_reader(
    pictures: np.ndarray, digits: Sequence[int], speakers: Sequence[str], epochs: int, seed: int = 0
) -> Reader:
    """A reader of recordings' pictures uint8 [N, 64, 64, 3].

    Each time a picture is seen it begins later by chance, is louder or softer, has noise in it, and
    loses a band of frequencies and one of time (arXiv 1904.08779).
    """
    names = tuple(sorted(set(speakers)))
    network, rng = Network(len(names)), np.random.default_rng(seed)
    targets = np.asarray(digits), np.array([names.index(one) for one in speakers])
    x = np.float32(pictures[..., :1]) / 255
    steps = epochs * -(-len(x) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    params = network.init(jax.random.key(seed), x[:1])["params"]
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, digit, speaker, key):
        def loss(params):
            logits = network.apply({"params": params}, x, True, rngs={"dropout": key})
            parts = zip(logits, (digit, speaker), strict=True)
            return sum(_cross_entropy(one, target) for one, target in parts)

        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    for number in range(steps):
        if number % -(-len(x) // BATCH) == 0:
            order, place = rng.permutation(len(x)), 0
        rows = np.take(order, np.arange(place, place + BATCH), mode="wrap")
        place += BATCH
        params, state = step(
            params, state, varied(x[rows], rng), *(t[rows] for t in targets),
            jax.random.key(seed * steps + number),
        )  # fmt: skip
    return Reader(params, names)


def _cross_entropy(logits, target):
    wanted = optax.smooth_labels(jax.nn.one_hot(target, logits.shape[-1]), SMOOTHED)
    return optax.softmax_cross_entropy(logits, wanted).mean()


def varied(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spectrograms [B, H, W, 1] as they might have been recorded: see `trained_reader`."""
    made = np.empty_like(x)
    height, width = x.shape[1:3]
    for row, one in enumerate(x):
        heard = np.flatnonzero(one.any(axis=(0, 2)))
        room = width - 1 - (heard[-1] if heard.size else 0)
        new = np.roll(one, rng.integers(0, room + 1), axis=1)
        sounding = new > 0
        new = new + sounding * rng.normal(0, GAIN) + NOISE * rng.normal(size=new.shape)
        new = np.clip(np.where(sounding, new, np.maximum(new, 0)), 0, 1)
        for axis, side in ((0, height), (1, width)):
            size = rng.integers(0, MASKED + 1)
            start = rng.integers(0, side - size + 1)
            new[(slice(None),) * axis + (slice(start, start + size),)] = 0
        made[row] = new
    return made.astype(np.float32)
