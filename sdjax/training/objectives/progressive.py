"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512), guided as in Meng et al. 2022
(arXiv 2210.03142).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from sdjax.diffusion.config import schedule_settings
from sdjax.errors import SdjaxError, check_at_least, check_choices
from sdjax.pipeline.plans.plan import OWN_STEPS
from sdjax.training.loop.optimizers import learning_rate, make_optimizer

from .distillation import Distillation


@dataclass(frozen=True)
class Progressive(Distillation):
    """One step of the student is to end where two of the teacher's do; then the student, in its
    average, is the next teacher, and the number of steps is halved again.

    The run's `steps` say how many rounds there are: guidance_steps and a multiple of round_steps.
    In each the optimizer and its learning rate begin anew.
    """

    start_steps: int = 32
    """DDIM steps of the first teacher, a power of two; the first student has half."""
    round_steps: int = 1000
    """Updates of a round."""
    guidance_scale: tuple[float, float] = (1.0, 1.0)
    """Between which scales of guidance the first teacher is asked; 1 and 1 for none."""
    guidance_steps: int = 0
    """Updates of a first stage in which the student learns what the guided model says in one
    evaluation; 0 for none, where the first round takes the guided model's steps."""
    scale_embedding: int = 0
    """Width of the embedding by which the student takes the scale as an input; 0 for a student that
    does not."""
    weighting: Literal["truncated_snr", "snr_plus_one"] = "truncated_snr"
    """Of the error of x_0: max(snr, 1) or snr + 1."""
    given: ClassVar = ("step",)

    def __post_init__(self):
        check_choices(self)
        self.check()
        check_at_least(1, self, "round_steps")
        check_at_least(0, self, "guidance_steps")
        if self.start_steps < 2 or self.start_steps & (self.start_steps - 1):
            raise SdjaxError(
                f"distillation.start_steps must be a power of two from 2 on, got {self.start_steps}"
            )
        if self.guidance_steps and self.guidance_scale == (1, 1):
            raise SdjaxError("distillation.guidance_steps needs a guidance_scale above 1")

    def rounds(self, steps) -> int:
        """How often the number of steps is halved in a run of so many updates."""
        return (steps - self.guidance_steps) // self.round_steps

    def check_run(self, config):
        """SdjaxError where the run ends within a round, or has too many."""
        rounds, most = self.rounds(config.steps), self.start_steps.bit_length() - 1
        if (config.steps - self.guidance_steps) % self.round_steps or not 1 <= rounds <= most:
            raise SdjaxError(
                f"steps must be distillation.guidance_steps {self.guidance_steps} and 1 to {most} "
                f"times round_steps {self.round_steps}, got {config.steps}"
            )

    def beside(self, key, tree, base, unet):
        """The teacher of the round; before the first halving it is not asked."""
        del key, base, unet
        return {"teacher": jax.tree.map(jnp.array, tree)}

    def optimizer(self, config, rates):
        """Of a round; the teacher stands still."""
        warmup = config.optimizer.warmup_steps
        shortest = min(self.round_steps, self.guidance_steps or self.round_steps)
        if warmup >= shortest:
            raise SdjaxError(
                f"optimizer.warmup_steps must be below a round's {shortest} steps, got {warmup}"
            )
        own = make_optimizer(config.optimizer, self.round_steps, rates)
        return optax.multi_transform(
            {"student": own, "teacher": optax.set_to_zero()},
            {"student": "student", "teacher": "teacher"},
        )

    def learning_rate(self, config, step):
        """That of the round."""
        since = step if step < self.guidance_steps else (
            (step - self.guidance_steps) % self.round_steps)
        return learning_rate(config.optimizer, self.round_steps)(since)

    def begin(self, config, state, optimizer):
        """At the end of a round: the average becomes teacher and student."""
        del config
        since = state.step - self.guidance_steps
        due = (since >= 0) & (since % self.round_steps == 0) & (state.step > 0)

        def anew(state):
            student = state.ema["student"]
            params = {"student": student, "teacher": student}
            return state.replace(params=params, ema=params, opt_state=optimizer.init(params))

        return jax.lax.cond(due, anew, lambda state: state, state)

    def loss(self, task, params):
        """The weighted squared error of x_0, at the student's timesteps drawn evenly."""
        since = task.state["step"] - self.guidance_steps
        halved = jnp.maximum(since // self.round_steps, 0)
        steps = self.start_steps / 2.0 ** (halved + 1)
        count = len(task.schedule)
        number = task.whole("level", 0, steps.astype(jnp.int32)) + 1
        scale = task.scale(self.guidance_scale)
        told = scale if self.scale_embedding else None
        noise = task.noise()

        def at(part):
            """The level that is this part of the way up, rounded as "trailing" spacing has it."""
            return task.level(jnp.round(count * part).astype(jnp.int32) - 1)

        def way(of, start):
            """What the student is to say at a level, by two steps of a teacher."""
            x = start.alpha * task.x_0 + start.sigma * noise
            middle, end = at((number - 0.5) / steps), at((number - 1) / steps)
            half = of(x, start).at(middle)
            reached = of(half, middle).at(end)
            ratio = end.sigma / start.sigma
            return (reached - ratio * x) / (end.alpha - ratio * start.alpha)

        def guided(x, level):
            return task.taught(x, level, scale)

        def student(x, level):
            return task.learned(jax.lax.stop_gradient(params["teacher"]), x, level, told)

        start = at(number / steps)
        first = halved == 0
        if self.guidance_steps:
            anywhere = task.level(task.whole("renoise", 0, count))
            fits = since < 0
            start = jax.tree.map(lambda a, b: jnp.where(fits, a, b), anywhere, start)
        x = start.alpha * task.x_0 + start.sigma * noise
        if self.guidance_steps:
            wanted = jax.lax.cond(
                fits, lambda: guided(x, start).x_0, lambda: way(student, start))
        else:
            wanted = jax.lax.cond(
                first, lambda: way(guided, start), lambda: way(student, start))
        found = task.learned(params["student"], x, start, told).x_0
        snr = (start.alpha / start.sigma) ** 2
        weight = jnp.maximum(snr, 1) if self.weighting == "truncated_snr" else snr + 1
        error = weight * (found - jax.lax.stop_gradient(wanted)) ** 2
        return error.mean(), {"student_steps": steps}

    def scheduler(self, config, teacher):
        """diffusers' DDIMScheduler at the student's timesteps."""
        own = self.start_steps >> self.rounds(config.steps)
        return {
            "_class_name": "DDIMScheduler", OWN_STEPS: own, **schedule_settings(teacher),
            "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0,
            "timestep_spacing": "trailing",
        }
