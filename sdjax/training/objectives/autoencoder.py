"""The autoencoder's objective: reconstruction, KL and an optional perceptual term."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError, check_at_least, check_choices
from sdjax.models.vae import VAE, VAEConfig
from sdjax.parallel import map_over_devices
from sdjax.training.loop.config import RunConfig
from sdjax.training.loop.optimizers import make_optimizer

from .adversary import AdversaryConfig, adaptive_weight
from .denoising import sampled_posterior


_DECODER = ("decoder", "post_quant_conv")
_BESIDE = ("log_variance", "discriminator")


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
    textures of `sdjax.evaluation.features`, "lpips:FILE" or "lpips:FILE,FILE" for LPIPS by these
    weights, or "package.module:name"."""
    log_variance: bool = False
    """Learn what the terms of the reconstruction are divided by, as latent diffusion writes it:
    their log-variance, which begins at 0 and is added to them."""
    adversary: AdversaryConfig | None = None
    """A discriminator that is trained beside it."""
    trained: Literal["all", "decoder"] = "all"
    """Whether a model's latents stay what they are, on top of which it is trained."""
    normalize: Literal["channels", "scale"] = "channels"
    """After training, make the latents' channels zero-mean and unit-variance inside the 1x1
    convolutions at the latent, or only set the configuration's scaling_factor."""
    sheet_images: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_choices(self)
        check_at_least(0, self, "kl_weight", "perceptual_weight")
        check_at_least(1, self, "sheet_images")
        if bool(self.perceptual_weight) != bool(self.perceptual):
            raise SdjaxError("perceptual and perceptual_weight must be given together")


@dataclass(frozen=True)
class AutoencoderObjective:
    """reconstruction + kl_weight · KL + perceptual_weight · distance of features, and what an
    adversary says of it.

    The KL is summed over the latent and divided by H·W·3, as the reconstruction's mean is, so
    that kl_weight means what it means in latent-diffusion. features: images -> tree, or (weights,
    images) -> tree where the frozen tree has its weights, "perceptual". That has "vae" where the
    autoencoder is there already. What is trained are its parts, or its decoder's, and beside them
    "log_variance" and the "discriminator", whose gradients are of its own loss.
    """

    config: AutoencoderRun
    features: Callable | None = None

    @property
    def vae(self) -> VAE:
        """The autoencoder, in the run's precision."""
        return VAE(self.config.vae, self.config.dtype, self.config.remat_kind)

    def optimizer(self):
        """The run's, and beside it the discriminator's own."""
        config = self.config
        parts = config.adversary and {"discriminator": config.adversary.optimizer}
        return make_optimizer(config.optimizer, config.steps, parts=parts)

    def init(self, key, frozen=None):
        """Trainable parameters: fresh ones, or those of the frozen tree."""
        config, given = self.config, (frozen or {}).get("vae")
        params = self.vae.init(key) if given is None else jax.tree.map(jnp.array, dict(given))
        if config.trained == "decoder":
            params = {name: params[name] for name in _DECODER if name in params}
        if config.log_variance:
            params["log_variance"] = jnp.zeros(())
        if config.adversary is not None:
            side = 8 * 2**config.adversary.layers
            images = jnp.zeros((1, side, side, config.vae.out_channels))
            params["discriminator"] = config.adversary.init(jax.random.fold_in(key, 1), images)
        return params

    def autoencoder(self, params, frozen) -> dict:
        """The autoencoder's own parameters."""
        own = {name: tree for name, tree in params.items() if name not in _BESIDE}
        return {**frozen.get("vae", {}), **own}

    def loss(self, params, frozen, batch, keys):
        """Of batch["image"], uint8 or float in [-1, 1], [b, H, W, 3].

        With "lesson" int [b] the adversary counts from 1 on.
        """
        config, images = self.config, as_float(batch["image"])
        whole = self.autoencoder(params, frozen)
        mean, log_variance = self.vae.posterior(whole, images)
        if config.trained == "decoder":
            mean, log_variance = jax.lax.stop_gradient((mean, log_variance))
        z = sampled_posterior(keys, mean, jnp.exp(0.5 * log_variance))
        last = whole["decoder"]["conv_out"]["kernel"]

        def decode(kernel):
            decoder = whole["decoder"]
            decoder = {**decoder, "conv_out": {**decoder["conv_out"], "kernel": kernel}}
            return self.vae.decode({**whole, "decoder": decoder}, z)

        if config.adversary is None:
            decoded = decode(last)
        else:
            decoded, pull = jax.vjp(decode, last)
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        divergence = divergence / images.size
        rest, metrics = self._reconstruction(params, frozen, images, decoded)
        metrics["kl"] = divergence
        total = rest + config.kl_weight * divergence
        if config.adversary is not None:
            adversary, parameters = config.adversary, params["discriminator"]
            fooled, hinge = adversary.losses(parameters, images, decoded)
            size = images[0].size  # its adaptive weight is of sums over a picture
            (by_rest,) = pull(jax.grad(
                lambda x: size * self._reconstruction(params, frozen, images, x)[0])(decoded))
            (by_adversary,) = pull(jax.grad(
                lambda x: adversary.losses(parameters, images, x)[0])(decoded))
            weight = adaptive_weight(by_rest, by_adversary)
            counts = jnp.mean(batch["lesson"] > 0) if "lesson" in batch else 1.0
            total = total + counts * (adversary.weight * weight * fooled / size + hinge)
            metrics |= {"fooled": fooled, "discriminator": hinge, "adaptive_weight": weight}
        return total, metrics

    def _reconstruction(self, params, frozen, images, decoded):
        """(what the decoded pictures cost, its terms)."""
        config, error = self.config, decoded - images
        squared = jnp.mean(error**2)
        term = jnp.mean(jnp.abs(error)) if config.reconstruction == "l1" else squared
        metrics = {"reconstruction": term, "squared_error": squared}
        if self.features is not None:
            weights = (frozen["perceptual"],) if "perceptual" in frozen else ()
            pairs = zip(
                jax.tree.leaves(self.features(*weights, decoded)),
                jax.tree.leaves(self.features(*weights, images)), strict=True,
            )
            metrics["perceptual"] = sum(jnp.mean((a - b) ** 2) for a, b in pairs)
            term = term + config.perceptual_weight * metrics["perceptual"]
        if config.log_variance:
            term = term * jnp.exp(-params["log_variance"]) + params["log_variance"]
        return term, metrics

    def sheet(self, images, frozen=None):
        """A function ema -> (pictures, captions): of images [n, H, W, 3], each beside its
        reconstruction from the posterior's mean.
        """
        def reconstruct(shared, images):
            params = self.autoencoder(*shared)
            return self.vae.decode(params, self.vae.encode(params, as_float(images)))

        program = map_over_devices(reconstruct, items=1)
        given = np.asarray(as_float(images))
        kept = {"vae": frozen["vae"]} if frozen and "vae" in frozen else {}

        def make(ema):
            shown = program((ema, kept), images)
            pairs = np.stack([given, np.asarray(shown)], axis=1)
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
