"""Optax optimizers and learning-rate schedules from configuration."""

import jax
import optax

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
    config: OptimizerConfig, steps: int, rates=None
) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` updates, global-norm clipping included.

    rates: params -> a tree of floats, what each leaf's learning rate is multiplied with, weight
    decay included; None for 1.

    AdamW (arXiv 1711.05101), Lion (arXiv 2302.06675), Adafactor (arXiv 1804.04235; its own
    relative step sizes are off, so that the configured schedule is the one that counts).
    """
    rate = learning_rate(config, steps)
    if config.name == "adamw":
        update = optax.adamw(
            rate, config.beta_1, config.beta_2, config.epsilon,
            weight_decay=config.weight_decay, mask=decayed,
        )
    elif config.name == "lion":
        update = optax.lion(
            rate, config.beta_1, config.beta_2, weight_decay=config.weight_decay, mask=decayed
        )
    else:
        # Adafactor adds its decay after the learning rate, so it is scaled here to mean the same.
        update = optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            momentum=config.beta_1 or None,
            weight_decay_rate=config.weight_decay * config.learning_rate or None,
            weight_decay_mask=decayed,
        )
    if rates is not None:
        update = optax.chain(update, optax.stateless(
            lambda change, params: jax.tree.map(lambda c, r: c * r, change, rates(params))
        ))
    if not config.clip_norm:
        return update
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
