"""Trained parameters to diffusers folders."""

import dataclasses
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sdjax.diffusion.samplers import training_signal, with_signal
from sdjax.models.unet_config import OWN_MODEL
from sdjax.pipeline import StableDiffusion
from sdjax.training.objectives.denoising import DenoisingConfig
from sdjax.weights import TextEncoder, UNet
from sdjax.weights.folder import write_json


BETA_SCHEDULES = {
    "linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2",
}
"""diffusers' names; what is called sigmoid there is another schedule than ours."""


def scheduler_config(denoising: DenoisingConfig, clip_sample, learned_variance=False) -> dict:
    """diffusers' scheduler_config.json for a network trained so: of a DDIM sampler, or of a DDPM
    sampler where the network gives the variance too.
    """
    schedule = denoising.schedule
    if schedule.name in BETA_SCHEDULES:
        betas = {"beta_schedule": BETA_SCHEDULES[schedule.name]}
    else:
        plain = dataclasses.replace(schedule, zero_terminal_snr=False).build()
        betas = {"trained_betas": np.asarray(plain.betas).tolist()}
    if learned_variance:
        kind = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    else:
        kind = {"_class_name": "DDIMScheduler", "set_alpha_to_one": True}
    return {
        **kind,
        **betas,
        "num_train_timesteps": schedule.num_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "prediction_type": "sample" if denoising.prediction == "x_0" else denoising.prediction,
        "timestep_spacing": _spacing(denoising, bounded=clip_sample),
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "clip_sample": clip_sample,
        "steps_offset": 0,
    }


def _spacing(denoising, bounded):
    """How the exported scheduler spreads its steps: from the schedule's last timestep on, where the
    network has been trained, but below a last timestep that leaves ε next to no signal.

    diffusers has no limit such as `noisiest`; its "leading" begins a step below the end.
    """
    signal = training_signal(denoising.schedule.build())
    ends_in_noise = with_signal(signal) < len(signal)
    errs = denoising.prediction == "epsilon" and ends_in_noise and not bounded
    return "leading" if errs else "trailing"


@contextmanager
def replacing(folder):
    """Yields a fresh folder that takes the place of `folder` when all went well."""
    folder = Path(folder)
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def export_pixel(folder, config, params, dtype):
    """Writes the U-Net of a PixelRun with its scheduler, as diffusers' DDIMPipeline has them, or,
    with learned variance, its DDPMPipeline. A warning tells where diffusers has no such U-Net.
    """
    own = config.unet.class_name == OWN_MODEL
    if own:
        warnings.warn(
            f"diffusers has no U-Net of these blocks: {folder} is read by sdjax.UNet alone",
            stacklevel=2,
        )
    scheduler = scheduler_config(config.denoising, True, config.learned_variance)
    with replacing(folder) as part:
        UNet(config.unet).save_pretrained(params["unet"], part / "unet", dtype)
        write_json(part / "scheduler" / "scheduler_config.json", scheduler)
        write_json(part / "model_index.json", {
            "_class_name": "DDPMPipeline" if config.learned_variance else "DDIMPipeline",
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "unet": ["sdjax", "UNet"] if own else ["diffusers", config.unet.class_name],
        })


def latent_model(
    config, vae, text_encoder, tokenizer, params, captions=()
) -> StableDiffusion:
    """The text-to-image model of a LatentRun.

    vae: sdjax.weights.VAE. text_encoder: the TextEncoderConfig with the tokenizer's vocabulary.
    params: {"unet", "vae", "text_encoder"}. captions: all that it was trained on, if known.
    """
    return StableDiffusion(
        UNet(config.unet), vae, TextEncoder(text_encoder), tokenizer,
        scheduler_config(config.denoising, clip_sample=False), params,
        guidance_scale=config.sheet.guidance_scale, captions=captions,
    )


def export_latent(folder, model: StableDiffusion, dtype):
    """Writes a text-to-image model as diffusers' StableDiffusionPipeline has it."""
    with replacing(folder) as part:
        model.save_pretrained(part, dtype)
