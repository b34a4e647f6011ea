"""Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378; as LoRA, 2311.05556)."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from sdjax import diffusion
from sdjax.errors import SdjaxError, check_at_least, check_choices

from .distillation import Distillation, Level, lcm_scheduler


@dataclass(frozen=True)
class LCM(Distillation):
    """What the student says of x at one timestep is to be what it says a step further down the
    guided teacher's path, and at the end of the path what is there.
    """

    guidance_scale: tuple[float, float] = (6.0, 16.0)
    """Between which scales of guidance the teacher is asked, as `generate` counts them."""
    scale_embedding: int = 0
    """Width of the embedding by which the student takes the scale as an input (256 as published);
    0 for a student that does not."""
    solver_steps: int = 50
    """Into how many DDIM steps the schedule is divided."""
    distance: Literal["huber", "l2"] = "huber"
    huber_c: float = 0.001
    timestep_scaling: float = 10.0
    """How fast the picture itself gives way to the network's, over the timesteps."""
    target: Literal["ema", "online"] = "ema"
    """Which weights say the target: the run's average, of ema_decay, or the student's own."""

    def __post_init__(self):
        check_choices(self)
        self.check()
        check_at_least(1, self, "solver_steps")
        for name in ("huber_c", "timestep_scaling"):
            if not getattr(self, name) > 0:
                raise SdjaxError(f"distillation.{name} must be above 0, got {getattr(self, name)}")

    @property
    def given(self):
        """The average, where it is the target."""
        return ("ema",) if self.target == "ema" else ()

    def consistent(self, said, x, level: Level):
        """x near the end of the path, and the network's x_0 everywhere else."""
        scaled = (self.timestep_scaling * level.t).reshape(level.alpha.shape)
        skip = 0.25 / (scaled**2 + 0.25)
        out = scaled / jnp.sqrt(scaled**2 + 0.25)
        return skip * x + out * said.x_0

    def loss(self, task, params):
        """The distance of both, at timesteps of the solver drawn evenly."""
        count = len(task.schedule)
        apart = count // self.solver_steps
        t = (task.whole("level", 0, self.solver_steps) + 1) * apart - 1
        start, end = task.level(t), task.level(jnp.maximum(t - apart, 0))
        x = start.alpha * task.x_0 + start.sigma * task.noise()
        scale = task.scale(self.guidance_scale)
        further = task.taught(x, start, scale).at(end)
        told = scale if self.scale_embedding else None
        found = self.consistent(task.learned(params["student"], x, start, told), x, start)
        tree = task.state["ema"] if self.target == "ema" else params
        tree = jax.lax.stop_gradient(tree["student"])
        wanted = self.consistent(task.learned(tree, further, end, told), further, end)
        kind = {"huber": "pseudo_huber", "l2": "mse"}[self.distance]
        each = diffusion.training_loss(found, wanted, kind, self.huber_c)
        return each.mean(), {}

    def scheduler(self, config, teacher):
        """diffusers' LCMScheduler, of 4 steps unless told otherwise."""
        del config
        return lcm_scheduler(teacher, 4, self.solver_steps, self.timestep_scaling)
