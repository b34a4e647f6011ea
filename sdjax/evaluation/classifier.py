"""A small classifier of pictures, always of one kind: to judge by, not to be judged."""

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax.models.layers import Conv
from sdjax.models.norms import GroupNorm

WIDTHS = (16, 32, 64)
_BATCH = 256


class _Network(nn.Module):
    """Three convolutions with group norms, each before a mean over 2x2, then one over all."""

    classes: int

    @nn.compact
    def __call__(self, x):
        for width in WIDTHS:
            x = nn.relu(GroupNorm(8)(Conv(width)(x)))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.classes)(x.mean((1, 2)))


@dataclass(frozen=True)
class Classifier:
    """A trained one."""

    classes: int
    params: dict

    @classmethod
    def fitted(cls, images, labels, classes, rows=None, *, updates=300, shift=True, flip=False,
               seed=0):
        """Train one by AdamW on cross-entropy, with standard augmentation where shift is True.

        images: uint8 [N, H, W, 3]. labels: int [N] below `classes`. rows: int [updates, batch],
        which pictures an update sees; None for shuffled epochs in batches of 64, or of all of them. shift: move each
        picture by up to an eighth of its side. flip: mirror half of them. The program depends on
        the shapes alone.
        """
        if rows is None:
            rows = shuffled(len(images), updates, min(64, len(images)), seed)
        images, labels = np.asarray(images), np.asarray(labels, np.int32)
        key, updates = jax.random.key(seed), len(rows)
        state = _begun(classes, updates, key, images[:1])
        for number, row in enumerate(rows):
            state = _updated(
                classes, updates, state, jax.random.fold_in(key, number), images[row], labels[row],
                np.float32(shift), np.float32(flip),
            )  # fmt: skip
        params, _ = state
        return cls(classes, params)

    def probabilities(self, images) -> np.ndarray:
        """Of each class, float32 [N, classes], for uint8 [N, H, W, 3]."""
        found = []
        for start in range(0, len(images), _BATCH):
            part = np.asarray(images[start : start + _BATCH])
            rows = np.minimum(np.arange(_BATCH), len(part) - 1)  # one shape for all
            found.append(np.asarray(_judge(self.classes, self.params, part[rows]))[: len(part)])
        return np.concatenate(found)

    def accuracy(self, images, labels) -> float:
        """Share of the pictures whose likeliest class is the label's."""
        return float((self.probabilities(images).argmax(-1) == np.asarray(labels)).mean())


def shuffled(count, updates, batch, seed) -> np.ndarray:
    """Rows [updates, batch] of shuffled epochs over `count` pictures."""
    draw = np.random.default_rng(seed)
    epochs = -(-updates * batch // count)
    order = np.concatenate([draw.permutation(count) for _ in range(epochs)])
    return order[: updates * batch].reshape(updates, batch)


def _scaled(images):
    return images.astype(jnp.float32) / 127.5 - 1


@functools.partial(jax.jit, static_argnums=0)
def _judge(classes, params, images):
    return jax.nn.softmax(_Network(classes).apply(params, _scaled(images)))


def _optimizer(updates):
    return optax.adamw(optax.cosine_decay_schedule(2e-3, updates), weight_decay=1e-2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begun(classes, updates, key, image):
    params = _Network(classes).init(key, _scaled(image))
    return params, _optimizer(updates).init(params)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _updated(classes, updates, state, key, images, labels, shift, flip):
    """(parameters, state of the optimizer) after one more update by uint8 [b, H, W, 3]."""
    params, kept = state
    reach = images.shape[1] // 8

    def varied(key, picture):
        key, coin = jax.random.split(key)
        by = jnp.round(jax.random.uniform(key, (2,), minval=-reach, maxval=reach) * shift)
        padded = jnp.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        begin = (*(reach + by.astype(jnp.int32)), 0)
        picture = jax.lax.dynamic_slice(padded, begin, picture.shape)
        mirrored = jax.random.uniform(coin) < 0.5 * flip
        return jnp.where(mirrored, picture[:, ::-1], picture)

    batch = jax.vmap(varied)(jax.random.split(key, len(images)), _scaled(images))

    def loss(params):
        logits = _Network(classes).apply(params, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    change, kept = _optimizer(updates).update(jax.grad(loss)(params), kept, params)
    return optax.apply_updates(params, change), kept
