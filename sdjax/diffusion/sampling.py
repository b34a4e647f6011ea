"""The sampling loop: one for every sampler."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from sdjax.diffusion.guidance import per_item
from sdjax.diffusion.noise import image_keys, independent_noise
from sdjax.diffusion.tables import EVALUATE, HISTORY, SKIP
from sdjax.errors import SdjaxError


class Underway(NamedTuple):
    """A sample of which a part of the table is done: what `sample` goes on from."""

    x: jax.Array
    """[batch, ...]: the sample, once the last part is done."""
    stopped: jax.Array
    """bool []: whether a callback has ended it."""
    registers: tuple
    """The second register, the history, and the state of `denoise`."""
    x_0: jax.Array
    """[batch, ...]: what the last evaluation took for the sample, 0 before the first."""


def begin(table, x, state=None):
    """What to give `sample` instead of x, so that it carries the table out in parts.

    Each call takes a `table.part` and gives the next `Underway`; together they do what one call
    does, in one compiled program. For progress bars, pauses and previews without a callback, which
    would keep the program out of JAX's compile cache.

    Args:
      table, x, state: as `sample` takes them.
    """
    x = jnp.asarray(x)
    if x.ndim < 1:
        raise SdjaxError("sample needs x with a leading batch axis, got a scalar")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * per_item(table.initial_scale, x)
    registers = (jnp.zeros_like(x), (jnp.zeros_like(x),) * HISTORY, state)
    return Underway(x, jnp.zeros((), bool), registers, jnp.zeros_like(x))


def sample(
    denoise, table, x, key=None, *, noise=None, state=None, keep=None, callback=None,
    trajectory=False, axis_name=None,
):  # fmt: skip
    """Run a sampler table from noise to a sample.

    Works under jit, vmap, grad, pmap and scan. Everything but shapes, dtypes and functions may be
    traced: under one `jax.jit` another sampler, step count or seed runs the same program.

    Args:
      denoise: function of (x [batch, ...], t []) that gives the prediction [batch, ...] the table
        was made for, or for a network with learned variance a pair of it and the variance
        fraction in 0 … 1, both [batch, ...]. x has unit variance, as networks expect.
      table: a `Table`, from `sampler` or `sampler_from_config`; or several `stacked`, one an item.
        Then t and what `keep` and `noise` are told have the batch's axis, and so must all of
        `state`; an item whose table is done waits for the others.
      x: [batch, ...], unit-variance noise, or `table.noised(x_0, noise)` for a table that starts
        part of the way; or an `Underway`, from `begin` or an earlier call, and then the result is
        one as well.
      key: one random key, from which image i takes `fold_in(key, i)`, or [batch] keys, one an
        image. An image depends on its own key only, not on the batch around it. None will do for
        a table without noise, and where `noise` is an array. A table that adds some is refused
        without a key; where it is traced, which hides whether it adds any, the result is NaN.
      noise: None for normal noise folded from key and row; a function (keys, row number, row,
        like) that draws it, such as `brownian_noise`; or an array [rows, batch, ...] that holds
        it, read where `table.noise_rows` says.
      state: where given, `denoise(x, t, state)` returns (its result, the next state), so that
        guidance can keep a running average, for one.
      keep: function of (x [batch, ...], level [2]) called after each evaluation, whose result takes
        the place of x, for parts of a sample that are known (inpainting). The level is what is in
        x then: signal · x_0 + noise · ε; at the end 1 and 0.
      callback: function of (number of the evaluation's row, t, x_0 [batch, ...]) called on the
        host after each evaluation, for progress and previews. Where it returns True the loop
        stops, and the result is that x_0.
      trajectory: also return x after every row of the table, [rows, batch, ...].
      axis_name: of a mapped axis over which the batch is spread, where `denoise` needs all of its
        parts at once: stacked tables are then evaluated together everywhere.

    Returns:
      The sample after the last row, [batch, ...], float32 (float64 where x is); with `trajectory`
      a pair of it and the samples after each row.
    """
    whole = not isinstance(x, Underway)
    start = begin(table, x, state) if whole else x
    x, _, (_, _, state), _ = start
    columns, kind = table.rows, table.rows.kind
    own = kind.ndim == 2
    if own:
        columns = jax.tree.map(lambda column: jnp.moveaxis(column, 0, 1), columns)
        kind = kind.max(axis=0)
        kind = kind if axis_name is None else jax.lax.pmax(kind, axis_name)
    rows = len(kind)
    noise = independent_noise if noise is None else noise
    keys = None if key is None else image_keys(key, x.shape[0])
    if keys is None and callable(noise):
        noise = _without_keys(table)
    given = None if callable(noise) else _padded(noise, rows, x)
    stateful = denoise if state is not None else lambda x, t, state: (denoise(x, t), state)

    def run_row(carry, inputs):
        index, kind, row, ready = inputs
        x, stopped, *_ = before = carry
        drawn = partial(_drawn, noise, keys, index, row, x)
        noise_of_row = drawn if given is None else (lambda: ready)
        branches = (_skip, _perturb, partial(_evaluate, stateful, table, keep, callback, index))
        carry = jax.lax.switch(
            jnp.where(stopped, SKIP, kind),
            [partial(branch, row, noise_of_row) for branch in branches],
            carry,
        )
        if own:
            carry = _where_done(row.kind, carry, before)
        return carry, carry[0] if trajectory else None

    inputs = jnp.arange(rows), kind, columns, given
    end, steps = jax.lax.scan(run_row, tuple(start), inputs)
    result = end[0] if whole else Underway(*end)
    return (result, steps) if trajectory else result


def _without_keys(table):
    """The noise of a table that was given no random key: it must not need any."""
    added = table.rows.noise
    if not isinstance(added, jax.core.Tracer) and np.any(added):
        raise SdjaxError(
            "this table adds noise and needs a random key: give key=jax.random.key(0), or another "
            "seed; only tables of deterministic samplers do without"
        )
    return lambda keys, index, row, like: jnp.full_like(like, jnp.nan)


def _skip(row, noise, carry):
    return carry


def _perturb(row, noise, carry):
    x, *rest = carry
    return x + per_item(row.noise, x) * noise(), *rest


def _where_done(kind, after, before):
    """What a row leaves where each item has a kind of its own, int[batch]: an item may skip a row
    that others carry out, and keeps its state where others alone are evaluated."""

    def chosen(done):
        return lambda new, old: jnp.where(per_item(done, new), new, old)

    x, stopped, (y, history, state), x_0 = after
    old_x, _, (old_y, old_history, old_state), old_x_0 = before
    kept = jax.tree.map(chosen(kind != SKIP), (x, y, history), (old_x, old_y, old_history))
    state, x_0 = jax.tree.map(chosen(kind == EVALUATE), (state, x_0), (old_state, old_x_0))
    return kept[0], stopped, (*kept[1:], state), x_0


def _drawn(noise, keys, index, row, like):
    """The row's noise; deterministic samplers draw none."""

    def draw():
        return jnp.asarray(noise(keys, index, row, like), like.dtype)

    return jax.lax.cond(jnp.any(row.noise != 0), draw, lambda: jnp.zeros_like(like))


def _evaluate(denoise, table, keep, callback, index, row, noise, carry):
    """Carries a row out; the formulas are those of `tables`."""
    x, stopped, (y, history, state), _ = carry
    output, state = denoise(per_item(row.input_scale, x) * x, row.timestep, state)
    prediction, fraction = output if isinstance(output, tuple) else (output, None)
    prediction = prediction.astype(x.dtype)
    outer = per_item(row.x_0[..., 0], x)
    x_0 = outer * combined(row.x_0[..., 1:], (x, prediction))
    x_0 = bounded(x_0, per_item(table.clip, x), table.threshold)
    derivative = combined(row.derivative, (x, x_0, prediction))
    terms = (x, y, derivative, *history)
    # Of items with kinds of their own, others than the first may have a row that only adds noise.
    evaluates = per_item(row.kind == EVALUATE, x)
    scale = per_item(row.noise, x)
    if fraction is not None:
        scale = scale * jnp.exp(0.5 * per_item(row.spread, x) * fraction.astype(x.dtype))
    x = combined(row.update[..., 0, :], terms) + scale * noise()
    x = x if keep is None else jnp.where(evaluates, keep(x, row.after), x)
    y = combined(row.update[..., 1, :], terms)
    remember = evaluates & per_item(row.remember, x)
    remembered = zip((derivative, *history), history, strict=False)
    history = tuple(jnp.where(remember, new, old) for new, old in remembered)
    if callback is not None:
        stopped = _told(callback, index, row.timestep, x_0)
        x = jnp.where(stopped, x_0, x)
    return x, stopped, (y, history, state), x_0


def combined(coefficients, arrays):
    """Σ coefficientᵢ · arrayᵢ, elementwise, so that no matrix unit rounds it.

    coefficients: [n], or [batch, n].
    """
    return sum(per_item(coefficients[..., i], array) * array for i, array in enumerate(arrays))


def bounded(x_0, clip, threshold):
    """x_0 clipped to ±clip, or thresholded dynamically (Imagen, arXiv 2205.11487, section 2.3).

    Args:
      x_0: [batch, ...].
      clip: [], infinity for none; or shaped to bound each item's.
      threshold: None, [2] or [batch, 2]: the quantile of |x_0| that becomes the bound, at least 1
        and at most the second number; x_0 is clipped to it and divided by it.
    """
    if threshold is None:
        return jnp.clip(x_0, -clip, clip)

    def bound_of(size, threshold):
        return jnp.clip(jnp.quantile(size, threshold[0]), 1, threshold[1])

    size = jnp.abs(x_0).reshape(x_0.shape[0], -1)
    bound = jax.vmap(bound_of)(size, jnp.broadcast_to(threshold, (len(x_0), 2)))
    bound = bound.reshape((-1,) + (1,) * (x_0.ndim - 1))
    return jnp.clip(x_0, -bound, bound) / bound


def _told(callback, index, timestep, x_0):
    """Whether the callback asks to stop, as a traced bool."""

    def call(*arguments):
        # NumPy's: a callback of the host that waits for the device may wait for ever.
        return np.asarray(bool(callback(*arguments)))

    return io_callback(call, jax.ShapeDtypeStruct((), bool), index, timestep, x_0)


def _padded(noise, rows, x):
    noise = jnp.asarray(noise, x.dtype)
    if noise.shape[1:] != x.shape or noise.shape[0] > rows:
        raise SdjaxError(
            f"noise must have shape [up to {rows} rows, {', '.join(map(str, x.shape))}], "
            f"got {noise.shape}"
        )
    return jnp.pad(noise, [(0, rows - noise.shape[0])] + [(0, 0)] * x.ndim)
