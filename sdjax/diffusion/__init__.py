"""The mathematics of diffusion as pure functions of arrays."""

from sdjax.diffusion.config import sampler_from_config, schedule_from_config
from sdjax.diffusion.guidance import classifier_free_guidance
from sdjax.diffusion.losses import loss_weight, training_loss
from sdjax.diffusion.predictions import convert_prediction
from sdjax.diffusion.process import add_noise, forward_step, posterior
from sdjax.diffusion.samplers import sampler
from sdjax.diffusion.sampling import sample
from sdjax.diffusion.schedules import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    scaled_linear_schedule,
    schedule_from_betas,
    sigmoid_schedule,
    zero_terminal_snr,
)
from sdjax.diffusion.tables import Table

__all__ = [
    "Schedule",
    "Table",
    "add_noise",
    "classifier_free_guidance",
    "convert_prediction",
    "cosine_schedule",
    "forward_step",
    "linear_schedule",
    "loss_weight",
    "posterior",
    "sample",
    "sampler",
    "sampler_from_config",
    "scaled_linear_schedule",
    "schedule_from_betas",
    "schedule_from_config",
    "sigmoid_schedule",
    "training_loss",
    "zero_terminal_snr",
]
