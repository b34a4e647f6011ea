"""Which activations a network keeps for its backward pass."""

import flax.linen as nn
import jax

from sdjax.errors import SdjaxError

POLICIES = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
"""Of `jax.checkpoint_policies`: what is kept inside of a block; the rest is computed again."""


def rematted(module: type[nn.Module], remat: bool | str) -> type[nn.Module]:
    """The class of modules, its activations computed again in the backward pass.

    remat: False for not at all, True for all of them, or one of POLICIES by name, which keep the
    results of matrix products. Raises SdjaxError for another.
    """
    if remat is False:
        return module
    if remat is not True and remat not in POLICIES:
        raise SdjaxError(
            f"remat is True, False, or one of {', '.join(POLICIES)}, got {remat!r}"
        )
    policy = None if remat is True else getattr(jax.checkpoint_policies, remat)
    return nn.remat(module, policy=policy)
