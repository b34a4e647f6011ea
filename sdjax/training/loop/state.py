"""The one training state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes.

    params: trained parameters, float32. opt_state: Optax state. ema: moving average of params.
    step: int32 [], updates made so far. There is no key: randomness is folded from seed and step.
    """

    params: Any
    opt_state: Any
    ema: Any
    step: jax.Array

    @classmethod
    def create(cls, params, optimizer):
        """The state before the first update, of a tree of arrays."""
        return cls(
            params=params,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.array, params),
            step=jnp.zeros((), jnp.int32),
        )


def ema_update(ema, params, step, decay):
    """Moving average after update number `step` (int32 [], counted from 0).

    The decay warms up as min((1 + step) / (10 + step), decay), so that the random start is
    forgotten at once.
    """
    step = step.astype(jnp.float32)
    decay = jnp.minimum((1 + step) / (10 + step), decay)
    return jax.tree.map(lambda e, p: e * decay + p * (1 - decay), ema, params)
