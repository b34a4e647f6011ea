"""The upstream cases of cases.json.gz and the dummy network that they use."""

import dataclasses
import functools
import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sdjax import diffusion


@functools.cache
def cases():
    """{"upstream": [...], "trajectories": [...]}: figures of diffusers' own tests and of 0.42.1."""
    path = pathlib.Path(__file__).with_name("cases.json.gz")
    return json.loads(gzip.decompress(path.read_bytes()))


def dummy_sample(shape=(4, 3, 8, 8), backwards=False):
    """diffusers' deterministic sample; its noise is the same backwards."""
    values = np.arange(np.prod(shape), dtype=np.float32)
    values = (values[::-1] if backwards else values) / values.size
    return np.moveaxis(values.reshape(*shape[1:], shape[0]), -1, 0)


def dummy_network(x, t):
    return x * t / (t + 1)


@functools.cache
def torch_draws(count, shape):
    """`count` successive draws of torch.randn after torch.manual_seed(0)."""
    generator = torch.Generator().manual_seed(0)
    return np.stack([torch.randn(shape, generator=generator).numpy() for _ in range(count)])


def noise_of(table, shape):
    """What torch would draw, where the table adds noise."""
    noise = np.zeros((len(table.rows.kind), *shape), np.float32)
    rows = table.noise_rows
    noise[rows] = torch_draws(len(rows), shape) if len(rows) else 0
    return noise


@jax.jit
def run(table, x, noise):
    """(last sample, samples after each row) with the dummy network."""
    return diffusion.sample(
        dummy_network, table, x, jax.random.key(0), noise=noise, trajectory=True
    )


def run_given(table, x):
    """The last sample and those after each evaluation, for x in the scale that the loop keeps."""
    last, steps = run(table, jnp.asarray(x / table.initial_scale), noise_of(table, x.shape))
    return np.asarray(last), np.asarray(steps)[np.asarray(table.rows.kind) != 0]


def scaled_step(table):
    """The table that takes its steps from the scaled input, as some of diffusers' tests do."""
    rows = table.rows
    scale = rows.input_scale
    update = rows.update.copy()
    update[:, :, 0] *= scale[:, None]
    x_0, derivative = rows.x_0.copy(), rows.derivative.copy()
    x_0[:, 1] *= scale
    derivative[:, 0] *= scale
    rows = dataclasses.replace(rows, update=update, x_0=x_0, derivative=derivative)
    return dataclasses.replace(table, rows=rows)
