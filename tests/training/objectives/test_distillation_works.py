"""What students learn, where everything is known: points around four places in the plane.

For DMD2, which measures its steps by a picture's mean, a picture is sixteen of them, else one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import diffusion
from sdjax.training import (
    DMD2,
    ECT,
    LCM,
    ArrayBatches,
    OptimizerConfig,
    Progressive,
    TuningRun,
    fit,
)
from sdjax.training.objectives.distillation import Task
from sdjax.training.objectives.distilled import DistilledObjective

TEACHER = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear",
           "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction",
           "rescale_betas_zero_snr": True}
PLACES = np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]])
WIDTH = 0.1  # standard deviation of the points around a place
SCHEDULE = diffusion.schedule_from_config(TEACHER)


def teacher(x, t):
    """The velocity that a perfect network predicts of the points, x [b, h, w, 2]."""
    t = jnp.asarray(t, jnp.int32).reshape(-1, 1, 1, 1)
    alpha = SCHEDULE.sqrt_alphas_cumprod[t]
    sigma = SCHEDULE.sqrt_one_minus_alphas_cumprod[t]
    variance = (alpha * WIDTH)**2 + sigma**2
    places = jnp.asarray(PLACES).reshape(4, 1, 1, 1, 2)
    near = -((x - alpha * places)**2).sum(-1, keepdims=True) / (2 * variance)
    share = jax.nn.softmax(near, axis=0)
    x_0 = (share * (places + alpha * WIDTH**2 / variance * (x - alpha * places))).sum(0)
    return alpha * (x - alpha * x_0) / sigma - sigma * x_0


def network(tree, x, t):
    """(a velocity, the hidden layer before it)."""
    t = jnp.asarray(t, jnp.float32).reshape(-1, 1, 1, 1) / 1000
    told = jnp.broadcast_to(jnp.concatenate([t, t**8], axis=-1), x.shape)
    seen = jnp.concatenate([x, told], axis=-1)
    hidden = jnp.tanh(seen @ tree["in"]["kernel"] + tree["in"]["bias"])
    hidden = jnp.tanh(hidden @ tree["middle"]["kernel"] + tree["middle"]["bias"])
    return hidden @ tree["out"]["kernel"], hidden


def student(tree, x, t):
    """The teacher's velocity, and what is learned beside it."""
    return teacher(x, t) + network(tree, x, t)[0]


class Plane(DistilledObjective):
    """The objective on points of the plane."""

    @property
    def config(self):
        return self.within

    def init(self, key, frozen=None):
        """DMD2's other network begins from nothing: far from all places the teacher's velocity is
        without bounds, and could not be unlearned."""
        first, second = jax.random.split(key)
        tree = {"unet": {
            "in": {"kernel": 2 * jax.random.normal(first, (4, 64)), "bias": jnp.zeros(64)},
            "middle": {"kernel": jax.random.normal(second, (64, 64)) / 8, "bias": jnp.zeros(64)},
            "out": {"kernel": jnp.zeros((64, 2))},
        }}
        config = types.SimpleNamespace(block_out_channels=(64,))
        return {"student": tree, **self.distillation.beside(
            key, tree, tree, types.SimpleNamespace(config=config))}

    def kept(self, frozen):
        return frozen

    def rates(self, params):
        return jax.tree.map(lambda _: 1.0, params)

    def loss(self, params, frozen, batch, keys):
        state = {name: frozen[name] for name in self.given}
        return self.distillation.loss(Task(
            SCHEDULE, "v_prediction", batch["x"], keys,
            lambda tree, x, t, scale: student(tree["unet"], x, t),
            lambda x, t, scale: teacher(x, t), lambda tree, x, t, _: network(tree, x, t), state,
        ), params)


METHODS = {
    "lcm": (LCM(guidance_scale=(1.0, 1.0), distance="l2"), 3000, {1: 0.88, 2: 0.92, 4: 0.92}),
    "progressive": (Progressive(start_steps=16, round_steps=750), 3000, {1: 0.85}),
    "ect": (ECT(double_every=500), 3000, {1: 0.75}),
    "dmd2": (DMD2(steps=2, guidance_scale=(1.0, 1.0), lowest=0.1), 5000, {1: 0.78}),
}
"""name -> (distillation, updates, {steps: the share of points that are to be near a place})"""


def drawn(method, run, tree, steps, side):
    """(share of points near a place, share of the least of the places, their deviation there)."""
    table = diffusion.sampler_from_config(method.scheduler(run, TEACHER), steps)
    noise = jax.random.normal(jax.random.key(5), (4000 // side**2, side, side, 2))
    keys = jax.random.split(jax.random.key(6), len(noise))

    def denoise(x, t):
        return student(tree, x, jnp.broadcast_to(t, len(x)))

    points = np.asarray(diffusion.sample(denoise, table, noise, keys)).reshape(-1, 1, 2)
    away = np.linalg.norm(points - PLACES, axis=-1)
    nearest, own = away.argmin(1), away.min(1)
    near = own < 4 * WIDTH
    least = min((nearest == i).mean() for i in range(4))
    return near.mean(), least, np.sqrt((own[near]**2).mean() / 2)


@pytest.mark.full
@pytest.mark.parametrize("name", METHODS)
def test_a_student_goes_in_few_steps_where_its_teacher_goes_in_many(name, tmp_path):
    method, updates, asked = METHODS[name]
    side = 4 if name == "dmd2" else 1
    run = TuningRun(
        distillation=method, steps=updates, batch_size=32 if side > 1 else 256, ema_decay=0.95,
        steps_per_call=50, log_every=500, checkpoint_every=updates, sheet_every=0,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20, weight_decay=0.0),
    )
    random = np.random.default_rng(0)
    points = PLACES[random.integers(4, size=20_000)] + WIDTH * random.normal(size=(20_000, 2))
    points = points.astype(np.float32).reshape(-1, side, side, 2)
    objective = Plane(run, method, None)
    batches = ArrayBatches({"x": points}, run.batch_size, 0)
    ema = fit(objective, {}, batches, run, tmp_path).ema
    begun = objective.init(jax.random.key(run.seed))["student"]["unet"]
    for steps, share in asked.items():
        before, (near, least, width) = (
            drawn(method, run, tree, steps, side) for tree in (begun, ema["student"]["unet"]))
        if steps == 1:
            assert before[0] < 0.1  # the mean of all places
        assert near > share and least > 0.2
        assert 0.4 * WIDTH < width < 1.8 * WIDTH
