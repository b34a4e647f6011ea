"""What every distillation is: a loss of a student and the model that it learns from."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdjax import diffusion
from sdjax.diffusion.config import schedule_settings
from sdjax.diffusion.predictions import prediction_coefficients, signal_and_noise
from sdjax.errors import SdjaxError
from sdjax.pipeline.plans.plan import OWN_STEPS
from sdjax.training.loop.optimizers import learning_rate, make_optimizer

_PURPOSES = ("noise", "level", "scale", "renoise", "real", "fake", "judge", "match")


class Level(NamedTuple):
    """How noisy x is: x = alpha·x_0 + sigma·ε. t float [b], what the network is told; alpha and
    sigma float [b, 1, …]."""

    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array


class Both(NamedTuple):
    """What a network says of x, as x_0 and as ε, [b, …] each; and as it said it."""

    x_0: jax.Array
    epsilon: jax.Array
    prediction: jax.Array

    def at(self, level: Level) -> jax.Array:
        """Where DDIM's step to this level ends."""
        return level.alpha * self.x_0 + level.sigma * self.epsilon


@dataclass(frozen=True)
class Task:
    """A batch as a distillation sees it: latents, what is drawn for them, and the networks.

    student: (trained tree, x, t, scale) -> its prediction. teacher: (x, t, scale) -> that of the
    model as it was, guided by `scale` where that is not None. untrained: (parameters of a U-Net
    like the teacher's, x, t, intermediates) -> its prediction alone under the caption, and what the
    function `intermediates` names of its inside. All take t float [b], scale float [b] or None, and
    x [b, h, w, C].
    state: "step" and "ema" of the training, where the distillation is given them.
    """

    schedule: diffusion.Schedule
    kind: str
    x_0: jax.Array
    keys: jax.Array
    student: Callable
    teacher: Callable
    untrained: Callable
    state: Mapping[str, Any]

    def level(self, t) -> Level:
        """Of timesteps t int [b]; −1 is the picture itself."""
        alpha, sigma = signal_and_noise(self.schedule, jnp.maximum(t, 0), self.x_0)
        clean = (t < 0).reshape(alpha.shape)
        t = jnp.maximum(t, 0).astype(jnp.float32)
        return Level(t, jnp.where(clean, 1.0, alpha), jnp.where(clean, 0.0, sigma))

    def both(self, prediction, x, level: Level) -> Both:
        """A prediction made of x at a level."""
        p, q, e, f = prediction_coefficients(self.kind, level.alpha, level.sigma)
        return Both(p * x + q * prediction, e * x + f * prediction, prediction)

    def taught(self, x, level: Level, scale=None) -> Both:
        """The teacher's, without a gradient."""
        found = self.teacher(x, level.t, scale)
        return self.both(jax.lax.stop_gradient(found), x, level)

    def learned(self, tree, x, level: Level, scale=None) -> Both:
        """The student's with this tree."""
        return self.both(self.student(tree, x, level.t, scale), x, level)

    def draw(self, purpose, function) -> jax.Array:
        """function(key) for each image, with a key of its own for each purpose."""
        number = 200 + _PURPOSES.index(purpose)
        return jax.vmap(lambda key: function(jax.random.fold_in(key, number)))(self.keys)

    def noise(self, purpose="noise") -> jax.Array:
        """Standard normal, as the latents."""
        return self.draw(purpose, lambda key: jax.random.normal(key, self.x_0.shape[1:]))

    def whole(self, purpose, low, high) -> jax.Array:
        """int [b] in low … high − 1, which may be traced."""
        u = self.draw(purpose, jax.random.uniform)
        return low + jnp.minimum((u * (high - low)).astype(jnp.int32), high - low - 1)

    def scale(self, ends) -> jax.Array | None:
        """float [b] between two scales of guidance; None where both are 1, which is none."""
        low, high = ends
        if low == high == 1:
            return None
        return low + (high - low) * self.draw("scale", jax.random.uniform)


class Distillation(abc.ABC):
    """How a student learns to need fewer evaluations; subclasses are frozen dataclasses.

    The trained parameters are {"student": an adaptation's tree, and what `beside` adds}.
    """

    given: ClassVar[tuple[str, ...]] = ()
    """Of "ema" and "step", what the loss needs of the training's state."""
    guidance_scale: tuple[float, float]
    """Between which scales of guidance the teacher is asked, as `generate` counts them; drawn
    evenly for each picture."""
    scale_embedding: int = 0

    def check(self):
        """SdjaxError where the scales are none."""
        low, high = self.guidance_scale
        if not 1 <= low <= high:
            raise SdjaxError(
                f"distillation.guidance_scale must be two numbers from 1 on, the first not the "
                f"greater, got {self.guidance_scale}"
            )
        if self.scale_embedding % 2 or self.scale_embedding < 0:
            raise SdjaxError(
                f"distillation.scale_embedding must be even, got {self.scale_embedding}")

    @property
    def own_scale(self) -> float:
        """The scale of guidance that the student is sampled with."""
        return sum(self.guidance_scale) / 2 if self.scale_embedding else 1.0

    def check_run(self, config):
        """SdjaxError where a run does not fit."""

    def beside(self, key, tree, base, unet) -> dict:
        """What is trained or kept beside the student's tree.

        base: the model's parameters. unet: the teacher's network.
        """
        del key, tree, base, unet
        return {}

    def optimizer(self, config, rates) -> optax.GradientTransformation:
        """Of the trained parameters. rates: as `make_optimizer`."""
        return make_optimizer(config.optimizer, config.steps, rates)

    def learning_rate(self, config, step: int) -> float:
        """The student's, to be told."""
        return learning_rate(config.optimizer, config.steps)(step)

    def begin(self, config, state, optimizer):
        """The training's state before an update."""
        del config, optimizer
        return state

    @abc.abstractmethod
    def loss(self, task: Task, params: Mapping) -> tuple[jax.Array, dict]:
        """(float32 [], metrics) of a task and the trained parameters."""

    @abc.abstractmethod
    def scheduler(self, config, teacher: Mapping) -> dict:
        """The scheduler_config.json that the student is sampled with, of the teacher's."""


def lcm_scheduler(teacher: Mapping, own: int, steps: int, timestep_scaling=10.0) -> dict:
    """diffusers' LCMScheduler on a model's schedule.

    own: how many steps are taken where nobody asks for a number. steps: at how many timesteps the
    student knows its part.
    """
    return {
        "_class_name": "LCMScheduler", OWN_STEPS: own, **schedule_settings(teacher),
        "original_inference_steps": steps, "timestep_scaling": timestep_scaling,
        "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0,
        "timestep_spacing": "leading",
    }
