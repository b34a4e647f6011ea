"""The mathematics of diffusion as pure functions of arrays."""

from sdjax.diffusion.config import (
    drawn_in_turn,
    sampler_from_config,
    sampler_name,
    schedule_from_config,
)
from sdjax.diffusion.guidance import (
    Momentum,
    adaptive_projected_guidance,
    cfg_zero_star,
    classifier_free_guidance,
    composed_guidance,
    guided,
    instruct_pix2pix_guidance,
    interval_scale,
    perturbed_attention_guidance,
)
from sdjax.diffusion.losses import loss_weight, training_loss
from sdjax.diffusion.noise import brownian_noise, independent_noise
from sdjax.diffusion.predictions import convert_prediction
from sdjax.diffusion.process import add_noise, forward_step, posterior
from sdjax.diffusion.samplers import sampler
from sdjax.diffusion.sampling import Underway, begin, sample
from sdjax.diffusion.schedules import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    polynomial_schedule,
    scaled_linear_schedule,
    schedule_from_betas,
    schedule_from_signal,
    sigmoid_schedule,
    zero_terminal_snr,
)
from sdjax.diffusion.subspace import projected_noise, without_mean
from sdjax.diffusion.tables import Table, stacked
from sdjax.diffusion.torch_noise import torch_noise
from sdjax.diffusion.variational import hybrid_loss, learned_log_variance, variational_bound

__all__ = [
    "Momentum",
    "Schedule",
    "Table",
    "Underway",
    "adaptive_projected_guidance",
    "add_noise",
    "begin",
    "brownian_noise",
    "cfg_zero_star",
    "classifier_free_guidance",
    "composed_guidance",
    "convert_prediction",
    "cosine_schedule",
    "drawn_in_turn",
    "forward_step",
    "guided",
    "hybrid_loss",
    "independent_noise",
    "instruct_pix2pix_guidance",
    "interval_scale",
    "learned_log_variance",
    "linear_schedule",
    "loss_weight",
    "perturbed_attention_guidance",
    "polynomial_schedule",
    "posterior",
    "projected_noise",
    "sample",
    "sampler",
    "sampler_from_config",
    "sampler_name",
    "scaled_linear_schedule",
    "schedule_from_betas",
    "schedule_from_config",
    "schedule_from_signal",
    "sigmoid_schedule",
    "stacked",
    "torch_noise",
    "training_loss",
    "variational_bound",
    "without_mean",
    "zero_terminal_snr",
]
