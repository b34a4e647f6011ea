"""What a training run is made of: frozen values that a config file builds and the command line
overrides.
"""

from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp

from sdjax.errors import SdjaxError, check_at_least, check_choices


@dataclass(frozen=True)
class OptimizerConfig:
    """An Optax optimizer with its learning-rate schedule."""

    name: Literal["adamw", "adafactor", "lion", "prodigy", "schedule_free", "muon"] = "adamw"
    learning_rate: float = 1e-3
    """Peak learning rate; with prodigy, which finds that itself, a factor of it, such as 1."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What follows the warm-up, until the last step; constant with schedule_free, which averages
    instead."""
    warmup_steps: int = 200
    final_fraction: float = 0.01
    """Learning rate at the last step over the peak (cosine and linear)."""
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    """Applied to kernels and embeddings, not to biases and norm scales."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the averaged gradient, a quarter of what full training keeps; with adamw, lion, muon and
    adafactor. Squares keep float32, where small changes must not be lost; adafactor has next to
    none of them."""
    clip_norm: float = 1.0
    """Bound on the global norm of the gradient; 0 turns clipping off."""

    def __post_init__(self):
        check_choices(self)
        check_at_least(0, self, "warmup_steps", "weight_decay", "clip_norm")
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise SdjaxError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise SdjaxError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.momentum_dtype != "float32" and self.name in ("prodigy", "schedule_free"):
            raise SdjaxError(
                f"momentum_dtype {self.momentum_dtype} is for adamw, lion, muon and adafactor, "
                f"not {self.name}"
            )
        if self.name == "schedule_free" and (self.schedule != "constant" or not self.beta_1):
            raise SdjaxError(
                f"schedule_free wants the schedule constant, and a beta_1 above 0: got "
                f"{self.schedule} and {self.beta_1}"
            )
        if self.name == "prodigy" and self.learning_rate < 0.01:
            raise SdjaxError(
                "prodigy finds the learning rate itself, and takes learning_rate as a factor of "
                f"it, usually 1: got {self.learning_rate}"
            )
        if not 0 <= self.final_fraction <= 1:
            raise SdjaxError(f"final_fraction must be in [0, 1], got {self.final_fraction}")


@dataclass(frozen=True)
class RunConfig:
    """What every training run has, whatever it learns."""

    steps: int = 10_000
    """Optimizer updates."""
    batch_size: int = 128
    """Images in one forward pass over all local devices."""
    accumulation: int = 1
    """Forward passes averaged into one update."""
    steps_per_call: int = 1
    """Updates made by one call of the compiled program. Small models gain from 8 or more. What is
    due at an interval of steps is done after the call that passes it."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in; parameters and optimizer stay float32."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_decay: float = 0.999
    """Largest decay of the parameters' moving average, reached by min(d, (1 + n) / (10 + n))."""
    ema_on_host: bool = False
    """Keep the moving average in the hosts' memory between updates: it comes to the devices a part
    at a time. For devices that are one mesh, see placement."""
    log_every: int = 50
    sheet_every: int = 1000
    """Steps between sample sheets; 0 for none but the last."""
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Also keep for good each checkpoint whose step this divides, a multiple of checkpoint_every;
    0 for none."""
    remat: bool = False
    """Recompute activations in the backward pass, for memory."""
    remat_policy: Literal[
        "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"
    ] = "nothing_saveable"
    """With remat: what a block keeps nonetheless, by the names of `jax.checkpoint_policies`."""
    profile: bool = False
    """Write a trace of a few calls, once the first has compiled, to the run's folder `profile`."""
    max_minutes: float = 0.0
    """Save and stop after this wall-clock time of this run, to be resumed; 0 for no limit. It
    counts from the first step: neither reading, nor other runs of the recipe, nor earlier sittings.
    """

    def __post_init__(self):
        check_choices(self)
        check_at_least(1, self, "steps", "batch_size", "accumulation", "steps_per_call",
                       "log_every", "checkpoint_every", "keep_checkpoints")
        check_at_least(0, self, "sheet_every", "keep_every", "max_minutes")
        if self.steps % self.steps_per_call:
            raise SdjaxError(
                f"steps ({self.steps}) must be a multiple of steps_per_call "
                f"({self.steps_per_call})"
            )
        whole = self.checkpoint_every % self.steps_per_call == 0
        if self.keep_every and (self.keep_every % self.checkpoint_every or not whole):
            raise SdjaxError(
                f"keep_every ({self.keep_every}) must be a multiple of checkpoint_every "
                f"({self.checkpoint_every}), and that one of steps_per_call ({self.steps_per_call})"
            )
        if self.ema_on_host and self.steps_per_call > 1:
            raise SdjaxError(
                f"ema_on_host needs a steps_per_call of 1, got {self.steps_per_call}"
            )
        if not 0 <= self.ema_decay < 1:
            raise SdjaxError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    @property
    def images_per_step(self):
        """Images that one update averages over."""
        return self.batch_size * self.accumulation

    @property
    def remat_kind(self):
        """`remat` of a network."""
        return self.remat and (
            True if self.remat_policy == "nothing_saveable" else self.remat_policy
        )

    @property
    def dtype(self):
        """The networks' dtype."""
        return jnp.dtype(self.precision)
