"""Optax optimizers and learning-rate schedules from configuration."""

import inspect

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from sdjax.errors import SdjaxError

from .config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then constant, cosine or linear decay that ends at update `steps`.

    Raises SdjaxError where the warm-up would be longer than the run.
    """
    warmup = config.warmup_steps
    if warmup >= steps:
        raise SdjaxError(
            f"optimizer.warmup_steps must be below steps, got {warmup} with {steps} steps"
        )
    peak, decay_steps = config.learning_rate, steps - warmup
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
    else:
        after = optax.linear_schedule(peak, peak * config.final_fraction, decay_steps)
    if not warmup:
        return after
    # The first update would do nothing at a rate of exactly 0.
    start = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([start, after], [warmup])


def decayed(params):
    """Tree of booleans: which parameters weight decay applies to (matrices, kernels, tables)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(
    config: OptimizerConfig, steps: int, rates=None, parts=None
) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` updates, global-norm clipping included.

    rates: params -> a tree of floats, what each leaf's learning rate is multiplied with, weight
    decay included; None for 1.
    parts: {key: OptimizerConfig} of what the tree of parameters, a dict, holds at its top under
    these keys: each has an optimizer of its own, which neither rates nor the clipping of others
    touch.

    AdamW (arXiv 1711.05101), Lion (arXiv 2302.06675), Adafactor (arXiv 1804.04235; its own
    relative step sizes are off, so that the configured schedule is the one that counts), Prodigy
    (arXiv 2306.06101), schedule-free AdamW (arXiv 2405.15682; what is used of it is what
    `evaluated` gives), Muon (kellerjordan.github.io/posts/muon) for kernels, those of convolutions
    as matrices [all inputs, outputs], at AdamW's usual size of steps (arXiv 2502.16982), and
    AdamW without decay for all else.
    """
    if not parts:
        return _single(config, steps, rates)

    def labels(params):
        return {
            key: jax.tree.map(lambda _, key=key: key if key in parts else "", tree)
            for key, tree in params.items()
        }

    own = {key: _single(each, steps) for key, each in parts.items()}
    return optax.partition({"": _single(config, steps, rates), **own}, labels)


def evaluated(opt_state, params):
    """The parameters that an optimizer means to be used: its averages where it is schedule-free,
    else those that it updates.
    """
    kind = optax.contrib.ScheduleFreeState
    for state in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind)):
        if isinstance(state, kind):
            params = _averages(state, params)
    return params


def _averages(state, params):
    def average(z, y):
        if isinstance(z, optax.MaskedNode):  # another optimizer's
            return y
        return (y - (1 - state.b1) * z) / state.b1

    return jax.tree.map(
        average, state.z, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))


def _single(config, steps, rates=None):
    update = _update(config, learning_rate(config, steps), rates)
    if not config.clip_norm:
        return update
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _update(config, rate, rates):
    decay = {"weight_decay": config.weight_decay}
    betas, momentum = (config.beta_1, config.beta_2), jnp.dtype(config.momentum_dtype)
    if config.name == "schedule_free":
        # The rates belong to the steps that it averages over.
        base = optax.adamw(rate, 0.0, config.beta_2, config.epsilon, mask=decayed, **decay)
        return optax.contrib.schedule_free(_scaled(base, rates), rate, config.beta_1)
    if config.name == "adamw":
        update = optax.adamw(
            rate, *betas, config.epsilon, mask=decayed, mu_dtype=momentum, **decay
        )
    elif config.name == "lion":
        update = optax.lion(rate, *betas, mask=decayed, mu_dtype=momentum, **decay)
    elif config.name == "prodigy":
        update = _prodigy(config, rate)
    elif config.name == "muon":
        if "consistent_rms" not in inspect.signature(optax.contrib.muon).parameters:
            raise SdjaxError("the optimizer muon needs a newer optax: pip install --upgrade optax")
        update = optax.contrib.muon(
            rate, beta=config.beta_1, eps=config.epsilon, weight_decay_mask=decayed,
            adam_b1=config.beta_1, adam_b2=config.beta_2, consistent_rms=0.2, mu_dtype=momentum,
            muon_weight_dimension_numbers=_matrices, **decay,
        )
    else:
        # Adafactor adds its decay after the learning rate, so it is scaled here to mean the same.
        update = optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            momentum=config.beta_1 or None,
            dtype_momentum=momentum,
            weight_decay_rate=config.weight_decay * config.learning_rate or None,
            weight_decay_mask=decayed,
        )
    return _scaled(update, rates)


def _scaled(update, rates):
    if rates is None:
        return update
    return optax.chain(update, optax.stateless(
        lambda change, params: jax.tree.map(lambda c, r: c * r, change, rates(params))
    ))


def _matrices(params):
    """Which axes of each leaf Muon takes for a matrix's; None for what it leaves to AdamW."""
    def axes(path, leaf):
        if jax.tree_util.keystr(path[-1:], simple=True) != "kernel" or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _prodigy(config, rate):
    """Optax's, whose weight decay knows no exceptions, with that of what is `decayed` alone."""
    inner = optax.contrib.prodigy(
        rate, (config.beta_1, config.beta_2), eps=config.epsilon,
        safeguard_warmup=config.warmup_steps > 0,
    )

    def update(gradient, state, params):
        change, new = inner.update(gradient, state, params)
        count = new.count
        size = jnp.sqrt(1 - config.beta_2**count) / (1 - config.beta_1**count)
        size = config.weight_decay * size * rate(state.count) * state.estim_lr
        return jax.tree.map(
            lambda c, p, own: c - size * p if own else c, change, params, decayed(params)), new

    return optax.GradientTransformation(inner.init, update)
