"""Consistency tuning, ECT (Geng et al. 2024, arXiv 2406.14548)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from sdjax.diffusion.predictions import take
from sdjax.errors import SdjaxError, check_at_least, check_choices

from .distillation import Distillation, Level, lcm_scheduler


@dataclass(frozen=True)
class ECT(Distillation):
    """What the student says of a picture at one level of noise is to be what it says of it at a
    lower one, with the same noise; the lower one comes nearer while it trains.

    Levels are σ, the noise over the signal, as in EDM. No teacher is asked: the student begins as
    the model, and no guidance is learned.
    """

    double_every: int = 1000
    """After so many updates the share of σ between both levels is divided by q."""
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    """r = σ·(1 − (1 + k·sigmoid(−b·σ))/q^(stage + 1)), at least 0."""
    mean: float = -1.1
    std: float = 2.0
    """Of log σ, which is drawn normal."""
    huber_c: float | None = None
    """Where the distance turns from quadratic to linear; None for 0.00054·√(size of a latent)."""
    weighting: Literal["interval", "snr"] = "interval"
    """1/(σ − r), or 1/σ² + 1/sigma_data²."""
    sigma_data: float = 0.5
    steps: int = 2
    """How many timesteps the student is sampled at, at most."""
    given: ClassVar = ("step",)
    guidance_scale: ClassVar = (1.0, 1.0)

    def __post_init__(self):
        check_choices(self)
        check_at_least(1, self, "double_every", "steps")
        for name in ("q", "std", "sigma_data", "huber_c"):
            value = getattr(self, name)
            if value is not None and not value > (1 if name == "q" else 0):
                least = int(name == "q")
                raise SdjaxError(f"distillation.{name} must be above {least}, got {value}")

    def lower(self, sigma, stage):
        """The lower level of each."""
        part = (1 + self.k * jax.nn.sigmoid(-self.b * sigma)) / self.q ** (stage + 1)
        return jnp.maximum(sigma * (1 - part), 0)

    def level(self, task, sigma) -> Level:
        """Of σ [b, 1, …], its timestep between those of the schedule by log σ."""
        known = jnp.log(task.schedule.sigmas)
        usable = jnp.isfinite(known)
        logs = jnp.where(usable, known, 1e9)
        log = jnp.clip(jnp.log(jnp.maximum(sigma, 1e-9)), logs[0], _last(logs, usable))
        t = jnp.interp(log.reshape(-1), logs, jnp.arange(len(logs), dtype=jnp.float32))
        alpha = 1 / jnp.sqrt(1 + sigma**2)
        return Level(t, alpha, sigma * alpha)

    def loss(self, task, params):
        """The distance of both over the weight, at levels drawn log-normal."""
        normal = task.draw("level", jax.random.normal).reshape(-1, *[1] * (task.x_0.ndim - 1))
        known = task.schedule.sigmas
        highest = _last(known, jnp.isfinite(known))
        sigma = jnp.clip(jnp.exp(self.mean + self.std * normal), known[0], highest)
        stage = jnp.asarray(task.state["step"] // self.double_every, jnp.float32)
        lower = self.lower(sigma, stage)
        noise = task.noise()

        def said(tree, sigma):
            level = self.level(task, sigma)
            x = level.alpha * (task.x_0 + sigma * noise)
            return task.learned(tree, x, level).x_0

        found = said(params["student"], sigma)
        wanted = said(jax.lax.stop_gradient(params["student"]), lower)
        wanted = jnp.where(lower > 0, wanted, task.x_0)
        axes = tuple(range(1, found.ndim))
        c = self.huber_c or 0.00054 * float(task.x_0[0].size) ** 0.5
        distance = jnp.sqrt(jnp.sum((found - wanted) ** 2, axis=axes) + c**2) - c
        if self.weighting == "interval":
            weight = 1 / (sigma - lower)
        else:
            weight = 1 / sigma**2 + 1 / self.sigma_data**2
        return (weight.reshape(-1) * distance).mean(), {"stage": stage}

    def scheduler(self, config, teacher):
        """diffusers' LCMScheduler: x_0, then noise to the next level."""
        del config
        return lcm_scheduler(teacher, self.steps, self.steps)


def _last(values, usable):
    """The last usable one of a rising table."""
    return take(values, usable.sum() - 1, values[0])
