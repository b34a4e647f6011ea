"""The one training step: gradients, accumulation, averaging over devices, update, EMA."""

import functools

import jax
import jax.numpy as jnp
import optax

from sdjax.parallel import COPIES, Copies, Sharded

from .config import RunConfig
from .optimizers import evaluated
from .state import TrainState, ema_update


def image_keys(seed, step, first, count):
    """One key for each of `count` images, [count], folded from seed, step and place in the batch.

    `first` (int32) is the place of the first. They do not depend on how the batch is split over
    devices.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def make_step(
    loss, optimizer, config: RunConfig, place: Copies | Sharded = COPIES, given=(), begin=None
):
    """The compiled step: (state, frozen, batches) -> (state, metrics).

    loss(params, frozen, batch, keys) -> (float32 [], dict of float32 []): mean over the images of
      batch, a tree of arrays [b, …]; keys [b] is one PRNG key an image.
    state: a TrainState, as `place.own` lays it out; it is donated.
    frozen: any tree of arrays that loss needs, as `place.put` lays it out.
    given: of "ema" and "step", what of the state loss finds in `frozen`, a dict then, by its name.
    begin: state -> state before each update; it says itself when there is something to change.
    batches: arrays of (steps_per_call, accumulation) batches, as `place.batch` lays them out.
    metrics: dict of float32 [steps_per_call], `loss` and `grad_norm` among them, averaged over
      devices; grad_norm is that before clipping.
    """

    def gradients(params, frozen, step, micro, batch):
        count = len(jax.tree.leaves(batch)[0])
        first = (micro * place.parts + place.part()) * count
        keys = image_keys(config.seed, step, first, count)
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, frozen, batch, keys
        )
        return place.settled(gradient), {"loss": value, **metrics}

    def accumulated(params, frozen, step, batches):
        if config.accumulation == 1:
            batch = jax.tree.map(lambda x: x[0], batches)
            return gradients(params, frozen, step, jnp.int32(0), batch)

        def add(total, item):
            out = gradients(params, frozen, step, *item)
            return jax.tree.map(jnp.add, total, out), None

        items = (jnp.arange(config.accumulation), batches)
        first = jax.tree.map(lambda x: x[0], items)
        shapes = jax.eval_shape(functools.partial(gradients, params, frozen, step), *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, items)
        return jax.tree.map(lambda x: x / config.accumulation, total)

    def update(state, batches, frozen):
        if begin is not None or "ema" in given:
            state = state.replace(ema=place.near(state.ema))
        state = state if begin is None else begin(state)
        if given:
            frozen = {**frozen, **{name: getattr(state, name) for name in given}}
        out = accumulated(state.params, frozen, state.step, batches)
        gradient, metrics = place.mean(out)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, change)
        used = evaluated(opt_state, params)
        ema = ema_update(place.near(state.ema), used, state.step, config.ema_decay)
        return place.settled(TrainState(params, opt_state, ema, state.step + 1)), metrics

    def call(state, frozen, batches):
        if config.steps_per_call == 1:
            state, metrics = update(state, jax.tree.map(lambda x: x[0], batches), frozen)
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(lambda s, b: update(s, b, frozen), state, batches)

    return place.compile(call)
