"""Distribution matching distillation (Yin et al. 2024, arXiv 2405.14867)."""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sdjax.errors import SdjaxError, check_at_least
from sdjax.training.adaptations.adaptation import as_float32
from sdjax.training.loop.config import OptimizerConfig
from sdjax.training.loop.optimizers import learning_rate, make_optimizer

from .distillation import Both, Distillation, lcm_scheduler


class Judge(nn.Module):
    """Features [b, h, w, C] of a U-Net's middle to a number [b], greater for real pictures."""

    @nn.compact
    def __call__(self, features):
        x, channels = features.astype(jnp.float32), features.shape[-1]
        for i in range(2):
            x = nn.Conv(channels, (4, 4), strides=2, padding=[(2, 2)] * 2, name=f"conv_{i}")(x)
            x = nn.silu(nn.GroupNorm(num_groups=None, group_size=channels, name=f"norm_{i}")(x))
        return nn.Dense(1, name="out")(x.mean((1, 2)))[:, 0]


@dataclass(frozen=True)
class DMD2(Distillation):
    """Pictures of the student are moved to where the teacher finds them likelier than a network
    does that knows what the student makes: the fake one, trained beside it on these pictures.

    The student makes a picture in `steps` steps as it will be sampled: x_0, then noise to the next
    level. The number of steps that are taken is drawn evenly, and the last of them is learned.
    """

    steps: int = 4
    """How many timesteps the student is sampled at."""
    guidance_scale: tuple[float, float] = (7.5, 7.5)
    """Between which scales of guidance the teacher is asked, as `generate` counts them."""
    student_every: int = 5
    """Updates of the fake network for each of the student."""
    lowest: float = 0.02
    highest: float = 0.98
    """Between which parts of the schedule the pictures are compared."""
    fake_optimizer: OptimizerConfig | None = None
    """Of the fake network; None for the student's."""
    gan_weight: float = 0.0
    """Of the loss of a judge of real pictures, which sees the fake network's middle; 0 for none."""
    judge_weight: float = 0.01
    """Of the judge's own loss beside the fake network's."""
    gan_highest: float = 1.0
    """The part of the schedule up to which pictures are noised for the judge."""
    given: ClassVar = ("step",)

    def __post_init__(self):
        self.check()
        check_at_least(1, self, "steps", "student_every")
        check_at_least(0, self, "gan_weight", "judge_weight")
        if not 0 <= self.lowest < self.highest <= 1 or not 0 < self.gan_highest <= 1:
            raise SdjaxError(
                "distillation.lowest, highest and gan_highest must be parts of the schedule in "
                f"0 … 1, in order, got {self.lowest}, {self.highest} and {self.gan_highest}"
            )

    def beside(self, key, tree, base, unet):
        """The fake network, which begins as the teacher, and the judge."""
        del tree
        found = {"fake": as_float32(base["unet"])}
        if self.gan_weight:
            width = unet.config.block_out_channels[-1]
            found["judge"] = Judge().init(key, jnp.zeros((1, 8, 8, width)))["params"]
        return found

    def optimizer(self, config, rates):
        """The student's, at every so many updates, and that of the fake network and the judge."""
        every = self.student_every
        own = make_optimizer(config.optimizer, -(-config.steps // every), rates)
        fake = make_optimizer(self.fake_optimizer or config.optimizer, config.steps)
        labels = {"student": "student", "fake": "fake"}
        return optax.multi_transform(
            {"student": optax.conditionally_mask(own, lambda step: step % every == 0),
             "fake": fake},
            labels | ({"judge": "fake"} if self.gan_weight else {}),
        )

    def learning_rate(self, config, step):
        """The student's."""
        every = self.student_every
        return learning_rate(config.optimizer, -(-config.steps // every))(step // every)

    def loss(self, task, params):
        """The fake network's loss, and every so often the student's."""
        apart = len(task.schedule) // self.steps
        taken = task.whole("level", 0, self.steps)  # steps before the one that is learned
        x = task.noise()
        keys = task.draw("renoise", lambda key: key)

        def stepped(x, number):
            """One step of the student from all of its timesteps in turn."""
            level = task.level(jnp.full_like(taken, apart * (self.steps - number) - 1))
            found = task.learned(jax.lax.stop_gradient(params["student"]), x, level).x_0
            after = task.level(jnp.full_like(taken, apart * (self.steps - number - 1) - 1))
            noise = jax.vmap(lambda key: jax.random.normal(
                jax.random.fold_in(key, number), task.x_0.shape[1:]))(keys)
            on = (number < taken).reshape(after.alpha.shape)
            return jnp.where(on, after.alpha * found + after.sigma * noise, x)

        for number in range(self.steps - 1):
            x = stepped(x, number)
        start = task.level(apart * (self.steps - taken) - 1)

        def made(tree):
            return task.learned(tree, x, start).x_0

        fixed = jax.lax.stop_gradient(params)
        picture = jax.lax.stop_gradient(made(fixed["student"]))
        fake = self.fake_loss(task, params["fake"], picture)
        metrics = {"fake": fake}
        total = fake
        if self.gan_weight:
            real, false = (self.judged(task, params, image, purpose) for image, purpose in (
                (task.x_0, "real"), (picture, "fake")))
            metrics["judge"] = (jax.nn.softplus(-real) + jax.nn.softplus(false)).mean()
            total = total + self.judge_weight * metrics["judge"]

        def student():
            picture = made(params["student"])
            loss = self.matching_loss(task, fixed["fake"], picture)
            if self.gan_weight:
                mood = self.judged(task, fixed, picture, "fake")
                loss = loss + self.gan_weight * jax.nn.softplus(-mood).mean()
            return loss

        due = task.state["step"] % self.student_every == 0
        own = jax.lax.cond(due, student, lambda: jnp.float32(0))
        metrics["student"] = self.student_every * own
        return total + own, metrics

    def matching_loss(self, task, fake, picture):
        """½·|x − sg(x − g)|², whose gradient is that of the two distributions' divergence."""
        count = len(task.schedule)
        t = task.whole("match", int(self.lowest * count), min(int(self.highest * count) + 1, count))
        level = task.level(t)
        x = level.alpha * picture + level.sigma * task.noise("real")
        real = task.taught(x, level, task.scale(self.guidance_scale)).x_0
        own = self._fake(task, fake, x, level).x_0
        gap = picture - real
        axes = tuple(range(1, gap.ndim))
        gradient = (own - real) / jnp.abs(gap).mean(axes, keepdims=True)
        goal = jax.lax.stop_gradient(picture - jnp.nan_to_num(gradient))
        return 0.5 * ((picture - goal) ** 2).mean()

    def fake_loss(self, task, fake, picture):
        """The denoising loss of the student's pictures, of what the network predicts."""
        level = task.level(task.whole("fake", 0, len(task.schedule)))
        noise = task.noise("fake")
        x = level.alpha * picture + level.sigma * noise
        found = self._fake(task, fake, x, level).prediction
        wanted = {
            "x_0": picture, "epsilon": noise,
            "v_prediction": level.alpha * noise - level.sigma * picture,
        }[task.kind]
        return ((found - wanted) ** 2).mean()

    def judged(self, task, params, picture, purpose):
        """The judge of pictures, noised to a level of their own."""
        highest = max(int(self.gan_highest * len(task.schedule)), 1)
        level = task.level(task.whole("judge", 0, highest))
        x = level.alpha * picture + level.sigma * task.noise(purpose)
        _, middle = task.untrained(params["fake"], x, level.t, True)
        return Judge().apply({"params": params["judge"]}, middle)

    def _fake(self, task, fake, x, level) -> Both:
        found, _ = task.untrained(fake, x, level.t, False)
        return task.both(found, x, level)

    def scheduler(self, config, teacher):
        """diffusers' LCMScheduler at the student's timesteps."""
        del config
        return lcm_scheduler(teacher, self.steps, self.steps)
