"""The training of a recipe's autoencoder: from noise, or further on top of a model's."""

import dataclasses

import jax
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.evaluation.features import feature_function
from sdjax.evaluation.lpips import lpips_features, read_lpips
from sdjax.parallel import leader, meet
from sdjax.training.loop.fit import check
from sdjax.training.loop.settings import changes_since, keep, say, tell
from sdjax.training.objectives.autoencoder import AutoencoderObjective, normalized
from sdjax.weights import VAE

from . import export
from .datasets import CHUNK, encode_all, latent_statistics

LPIPS = "lpips:"


def autoencoder(stage, model=None) -> bool:
    """Trains the autoencoder, where the recipe has one, into workdir/autoencoder/model; True when
    it is finished.

    stage: the recipe's work. model: whose autoencoder is trained further, with the latents' scale
    that it has.
    """
    run, folder = stage.recipe.autoencoder, stage.workdir / "autoencoder"
    if run is None:
        return True
    frozen = {}
    if model is not None:
        run = dataclasses.replace(run, vae=model.vae.config)
        frozen["vae"] = model.params["vae"]
    if (folder / "model").exists():
        _check_finished(folder / "model", run.vae)
        tell(folder / "model", changes_since(folder / "model", stage.settings("autoencoder")))
        return True
    features, weights = _features(run.perceptual)
    frozen |= weights
    objective = AutoencoderObjective(run, features)
    check(objective, run, folder, frozen)
    images = stage.material.all_pictures()["image"]
    shown = images[:run.sheet_images]
    lessons = []
    if run.adversary is not None and run.adversary.start:
        lessons = [(np.arange(len(images)), run.adversary.start * run.images_per_step)]
    outcome = stage.fit(
        objective, frozen, stage.batches(run, {"image": images}, lessons=lessons), run,
        "autoencoder", objective.sheet(shown, frozen),
    )
    if outcome.finished and leader():
        config, params = run.vae, objective.autoencoder(outcome.ema, frozen)
        if model is None:
            config, params = _with_normal_latents(run, params, images)
        with export.replacing(folder / "model") as part:
            VAE(config).save_pretrained(params, part)
            keep(part, stage.settings("autoencoder"))
        if model is not None:
            say(f"finished: the autoencoder is in {folder / 'model'}")
    meet()
    return outcome.finished


def _features(name):
    """(the feature function of a name, what the frozen tree has for it)."""
    if name.startswith(LPIPS):
        return lpips_features, {"perceptual": read_lpips(name.removeprefix(LPIPS))}
    return (feature_function(name) if name else None), {}


def _with_normal_latents(run, params, images):
    vae = VAE(run.vae)
    mean, std = latent_statistics(*encode_all(vae, params, images[:16 * CHUNK]))
    if run.normalize == "channels":
        return normalized(run.vae, jax.tree.map(np.asarray, params), mean, std)
    deviation = float(np.sqrt(np.mean(np.square(std) + np.square(mean)) - np.mean(mean) ** 2))
    return dataclasses.replace(run.vae, scaling_factor=1 / deviation), params


def _check_finished(folder, wanted):
    config = VAE.from_pretrained(folder)[0].config
    if dataclasses.replace(config, scaling_factor=wanted.scaling_factor) != wanted:
        raise SdjaxError(
            f"the autoencoder in {folder} is finished and of another architecture than the "
            "configuration's: train into another folder, or use the configuration that made it"
        )
