"""What pixel and latent diffusion share: drawing t and noise, and the loss of a prediction."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sdjax import diffusion
from sdjax.diffusion.predictions import signal_and_noise
from sdjax.diffusion.variational import hybrid_loss
from sdjax.errors import SdjaxError, check_at_least, check_choices

from .pyramid import pyramid_noise


@dataclass(frozen=True)
class ScheduleConfig:
    """A noise schedule by name."""

    name: Literal["linear", "scaled_linear", "cosine", "sigmoid", "polynomial_2"] = "scaled_linear"
    beta_start: float = 0.00085
    """First beta, of linear and scaled_linear alone."""
    beta_end: float = 0.012
    """Last beta, of linear and scaled_linear alone."""
    num_timesteps: int = 1000
    zero_terminal_snr: bool = False
    """Rescale so that the last timestep is pure noise (arXiv 2305.08891)."""

    def __post_init__(self):
        check_choices(self)
        check_at_least(2 if self.name == "polynomial_2" else 1, self, "num_timesteps")

    def build(self) -> diffusion.Schedule:
        """The schedule's tables."""
        # Inside a compiled step too the tables are made once, with NumPy's float64.
        with jax.ensure_compile_time_eval():
            make = getattr(diffusion, f"{self.name.removesuffix('_2')}_schedule")
            ends = (self.beta_start, self.beta_end) if "linear" in self.name else ()
            schedule = make(*ends, num_timesteps=self.num_timesteps)
            return diffusion.zero_terminal_snr(schedule) if self.zero_terminal_snr else schedule


@dataclass(frozen=True)
class DenoisingConfig:
    """How the network is asked, and how its answers are weighed."""

    schedule: ScheduleConfig | None = field(default_factory=ScheduleConfig)
    """None for that of the model that is trained on."""
    prediction: Literal["epsilon", "v_prediction", "x_0"] | None = "v_prediction"
    """None for that of the model that is trained on."""
    loss: Literal["mse", "l1", "huber"] = "mse"
    weighting: Literal["uniform", "min_snr", "p2"] = "uniform"
    weighting_gamma: float | None = None
    """Gamma of min_snr (5 where None) or p2 (1 where None)."""
    timesteps: Literal["uniform", "logit_normal", "power"] = "uniform"
    """How t is drawn: evenly; sigmoid of a normal (arXiv 2403.03206); or u^(1 / timestep_power)."""
    timestep_mean: float = 0.0
    """Mean of the logit-normal; above 0 prefers high noise."""
    timestep_std: float = 1.0
    timestep_power: float = 1.0
    """Above 1 prefers high noise."""
    stratified: bool = True
    """Spread the timesteps of a device's batch evenly (arXiv 2107.00630, appendix I.1)."""
    noise_offset: float = 0.0
    """Size of a further noise, one number a channel, that lets brightness be learned."""
    pyramid_iterations: int = 0
    """How many sizes of noise at most are added up, in place of one; 6 is usual, 0 for none."""
    pyramid_discount: float = 0.3
    """What each further, smaller size counts over the one before."""
    input_perturbation: float = 0.0
    """Size of a further noise that the network sees and is not asked for (arXiv 2301.11706)."""

    def __post_init__(self):
        check_choices(self)
        if self.prediction == "epsilon" and self.schedule and self.schedule.zero_terminal_snr:
            raise SdjaxError(
                "epsilon cannot be learned with zero_terminal_snr, where the last input holds "
                "nothing else: predict v_prediction or x_0"
            )
        check_at_least(0, self, "pyramid_iterations")
        if not 0 <= self.pyramid_discount <= 1:
            raise SdjaxError(f"pyramid_discount must be in 0 … 1, got {self.pyramid_discount}")
        if self.timestep_std <= 0 or self.timestep_power <= 0:
            raise SdjaxError("timestep_std and timestep_power must be above 0")


def check_known(denoising: DenoisingConfig):
    """SdjaxError where schedule or prediction is left to a model, and there is none."""
    if denoising.schedule is None or denoising.prediction is None:
        raise SdjaxError(
            "denoising.schedule and prediction are needed where no model is trained on"
        )


class Noised(NamedTuple):
    """A batch on its way into the network: float32 [b, …], and t int32 [b]."""

    x_0: jax.Array
    noise: jax.Array
    t: jax.Array
    x_t: jax.Array


def noised(
    config: DenoisingConfig, schedule, x_0, keys, timestep_mean=None, t=None, project=None
) -> Noised:
    """Draw a timestep and noise for each image of x_0 [b, …] from its key, keys [b].

    timestep_mean: float [b], each image's own, in place of the configuration's.
    t: int32 [b], timesteps that are given.
    project: function of noise [b, …] that gives its part in the subspace that the data lie in, such
      as `diffusion.without_mean`; None where they lie anywhere.
    """
    noise = _draw(keys, "noise", lambda key: jax.random.normal(key, x_0.shape[1:]))
    if config.noise_offset:
        shape = (1,) * (x_0.ndim - 2) + x_0.shape[-1:]
        offset = _draw(keys, "offset", lambda key: jax.random.normal(key, shape))
        noise = noise + config.noise_offset * offset
    if config.pyramid_iterations:
        if x_0.ndim != 4:
            raise SdjaxError("pyramid_iterations are of pictures: set them to 0")
        number = _PURPOSES.index("pyramid")
        noise = jax.vmap(lambda key, own: pyramid_noise(
            jax.random.fold_in(key, number), own, config.pyramid_iterations,
            config.pyramid_discount,
        ))(keys, noise)
    noise = noise if project is None else project(noise)
    if t is None:
        t = draw_timesteps(config, keys, timestep_mean, len(schedule))
    seen = noise
    if config.input_perturbation:
        further = _draw(keys, "perturbation", lambda key: jax.random.normal(key, x_0.shape[1:]))
        seen = noise + config.input_perturbation * further
        seen = seen if project is None else project(seen)
    return Noised(x_0, noise, t, diffusion.add_noise(schedule, x_0, seen, t))


def losses(
    config: DenoisingConfig, schedule, given: Noised, prediction, fraction=None, mask=None
):
    """Weighted loss of each image, float32 [b], for the network's prediction [b, …].

    mask: what each place counts, [b, …, 1], or each number, [b, …]; None for 1.

    fraction: [b, …] where the network learns the variance too; the loss is then the unweighted
    hybrid one of arXiv 2102.09672.
    """
    signal, sigma = signal_and_noise(schedule, given.t, given.x_0)
    target = {
        "x_0": given.x_0,
        "epsilon": given.noise,
        "v_prediction": signal * given.noise - sigma * given.x_0,
    }[config.prediction]
    if fraction is not None:
        return hybrid_loss(
            schedule, prediction, fraction, target, given.x_0, given.x_t, given.t,
            config.prediction, kind=config.loss,
        )
    weight = diffusion.loss_weight(
        schedule, given.t, config.prediction, config.weighting, config.weighting_gamma
    )
    return weight * diffusion.training_loss(prediction, target, config.loss, mask=mask)


def draw_timesteps(config: DenoisingConfig, keys, mean=None, count=None):
    """int32 [b] in 0 … T − 1 for keys [b], with the configuration's timestep_mean or `mean` [b].

    count: T, where the configuration has no schedule of its own.
    """
    u = _draw(keys, "timestep", jax.random.uniform)
    if config.stratified:
        u = (u[0] + jnp.arange(len(u)) / len(u)) % 1
    if config.timesteps == "logit_normal":
        # Away from 0 and 1, whose normal quantiles are infinite.
        normal = jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
        mean = config.timestep_mean if mean is None else mean
        u = jax.nn.sigmoid(mean + config.timestep_std * normal)
    elif config.timesteps == "power":
        u = u ** (1 / config.timestep_power)
    last = (count or config.schedule.num_timesteps) - 1
    return jnp.minimum((u * (last + 1)).astype(jnp.int32), last)


def dropped(keys, rate):
    """bool [b]: which images lose their condition, each with probability `rate`."""
    return _draw(keys, "dropout", jax.random.uniform) < rate


_PURPOSES = ("posterior", "timestep", "noise", "offset", "dropout", "network", "perturbation",
             "pyramid")


def _draw(keys, purpose, function):
    """function(key) for each image, with a key of its own for each purpose."""
    number = _PURPOSES.index(purpose)
    return jax.vmap(lambda key: function(jax.random.fold_in(key, number)))(keys)


def network_key(keys):
    """One key for the network's dropout, of keys [b]."""
    return jax.random.fold_in(keys[0], _PURPOSES.index("network"))


def sampled_posterior(keys, mean, std):
    """Latents [b, …] drawn from the posterior of mean and standard deviation [b, …]."""
    return mean + std * _draw(keys, "posterior", lambda key: jax.random.normal(key, mean.shape[1:]))
