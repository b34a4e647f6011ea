"""The autoencoder's objective: reconstruction, KL and an optional perceptual term."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError, check_at_least
from sdjax.models.vae import VAE, VAEConfig
from sdjax.parallel import map_over_devices
from sdjax.training.loop.config import RunConfig

from .denoising import sampled_posterior


@dataclass(frozen=True)
class AutoencoderRun(RunConfig):
    """Training of an AutoencoderKL (arXiv 2112.10752)."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-6
    """Weight of the KL term, summed over a latent and divided by the image's values."""
    perceptual_weight: float = 0.0
    perceptual: str = ""
    """Feature function, images [b, H, W, 3] in [-1, 1] -> tree of [b, …]: default, pixels, edges or
    textures of `sdjax.evaluation.features`, or "package.module:name"."""
    normalize: Literal["channels", "scale"] = "channels"
    """After training, make the latents' channels zero-mean and unit-variance inside the 1x1
    convolutions at the latent, or only set the configuration's scaling_factor."""
    sheet_images: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_at_least(0, self, "kl_weight", "perceptual_weight")
        check_at_least(1, self, "sheet_images")
        if bool(self.perceptual_weight) != bool(self.perceptual):
            raise SdjaxError("perceptual and perceptual_weight must be given together")


@dataclass(frozen=True)
class AutoencoderObjective:
    """reconstruction + kl_weight · KL + perceptual_weight · distance of features.

    The KL is summed over the latent and divided by H·W·3, as the reconstruction's mean is, so
    that kl_weight means what it means in latent-diffusion.
    """

    config: AutoencoderRun
    features: Callable | None = None

    @property
    def vae(self) -> VAE:
        """The autoencoder, in the run's precision."""
        return VAE(self.config.vae, self.config.dtype, self.config.remat)

    def init(self, key, frozen=None):
        """Trainable parameters: the VAE's."""
        del frozen
        return self.vae.init(key)

    def loss(self, params, frozen, batch, keys):
        """Of batch["image"], uint8 or float in [-1, 1], [b, H, W, 3]."""
        del frozen
        config, images = self.config, as_float(batch["image"])
        mean, log_variance = self.vae.posterior(params, images)
        z = sampled_posterior(keys, mean, jnp.exp(0.5 * log_variance))
        decoded = self.vae.decode(params, z)
        error = decoded - images
        squared = jnp.mean(error**2)
        term = jnp.mean(jnp.abs(error)) if config.reconstruction == "l1" else squared
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        divergence = divergence / images.size
        metrics = {"reconstruction": term, "kl": divergence, "squared_error": squared}
        total = term + config.kl_weight * divergence
        if self.features is not None:
            pairs = zip(
                jax.tree.leaves(self.features(decoded)), jax.tree.leaves(self.features(images)),
                strict=True,
            )
            metrics["perceptual"] = sum(jnp.mean((a - b) ** 2) for a, b in pairs)
            total = total + config.perceptual_weight * metrics["perceptual"]
        return total, metrics

    def sheet(self, images):
        """A function ema -> (pictures, captions): of images [n, H, W, 3], each beside its
        reconstruction from the posterior's mean.
        """
        def reconstruct(params, images):
            return self.vae.decode(params, self.vae.encode(params, as_float(images)))

        program = map_over_devices(reconstruct, items=1)
        given = np.asarray(as_float(images))

        def make(ema):
            pairs = np.stack([given, np.asarray(program(ema, images))], axis=1)
            return pairs.reshape(-1, *given.shape[1:]), None

        return make


def as_float(images):
    """Images in [-1, 1], float32, of uint8 or of what is float already."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images


def normalized(config: VAEConfig, params, mean, std) -> tuple[VAEConfig, Any]:
    """The same autoencoder with latents of mean 0 and deviation 1 in every channel.

    mean, std: [latent_channels] of the latents that it gives now. Both 1x1 convolutions at the
    latent are rescaled so that decode(encode(x)) stays what it was. Raises SdjaxError for an
    autoencoder without them.
    """
    if not (config.use_quant_conv and config.use_post_quant_conv):
        raise SdjaxError("an autoencoder without quant_conv can only be normalized by 'scale'")
    quant, post = params["quant_conv"], params["post_quant_conv"]
    # The log-variance of a divided variable is less by twice the log of the divisor; it has no
    # kernel to divide.
    shift = jnp.concatenate([-mean / std, -2 * jnp.log(std)])
    scale = jnp.concatenate([1 / std, jnp.ones_like(std)])
    params = {
        **params,
        "quant_conv": {
            "kernel": quant["kernel"] * scale,
            "bias": quant["bias"] * scale + shift,
        },
        "post_quant_conv": {
            "kernel": post["kernel"] * std[:, None],
            "bias": post["bias"] + jnp.einsum("hwio,i->o", post["kernel"], mean),
        },
    }
    return replace(config, scaling_factor=1.0), params
