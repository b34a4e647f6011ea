"""The one denoising loss of latents: whatever is trained, and whatever the network is given."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sdjax.models.clip import TextEncoder
from sdjax.models.controlnet import ControlNet
from sdjax.models.unet import UNet
from sdjax.models.vae import VAE
from sdjax.pipeline.compiled.arrays import Coder
from sdjax.pipeline.compiled.coding import pixels_to_moments, scaled
from sdjax.text.chunks import Chunks
from sdjax.text.encode import Embedded, embed, embed_chunks
from sdjax.training.adaptations.adaptation import Conditions

from .autoencoder import as_float
from .denoising import DenoisingConfig, dropped, losses, network_key, noised, sampled_posterior

IDS = {"text_encoder": "ids", "text_encoder_2": "ids_2"}
"""What a batch calls the ids of each text encoder."""


def latent_loss(*networks, **options):
    """(loss float32 [], metrics): the mean of `latent_losses`, of the same arguments."""
    return latent_losses(*networks, **options).mean(), {}


def clean_latents(vae: VAE, parts: Mapping, batch: Mapping, keys):
    """Latents [b, h, w, C] of a batch as `latent_losses` has it, in the U-Net's scale."""
    if "mean" in batch:
        mean, std = batch["mean"], batch["std"]
    else:
        mean, std = _encoded(vae, parts, as_float(batch["image"]))
    return scaled(vae.config, sampled_posterior(keys, mean, std))


def _encoded(vae, parts, images):
    return jax.lax.stop_gradient(pixels_to_moments(Coder(vae), parts["vae"], images))


def latent_losses(
    unet: UNet, vae: VAE, encoders: Mapping[str, TextEncoder], parts: Mapping, batch: Mapping, keys,
    *, denoising: DenoisingConfig, schedule, caption_dropout=0.0, timestep_mean=None,
    clip_skip=0, control: ControlNet | None = None, conditions=None,
):
    """The loss of each image of a batch, float32 [b].

    parts: parameters by the networks' names, with "empty_ids" int32 [L] (and "empty_ids_2"), the
      empty prompt's.
    batch: "ids" int32 [b, L] (and "ids_2"), or [b, chunks, L], whose contexts follow one another;
      or in their place "context" [b, K, D] (and "pooled" [b, P]) as `embed` gives them, with
      "empty_context" and "empty_pooled" among the parts; and either "image" [b, H, W, 3] (uint8 or
      in [-1, 1]) or the cached posterior, "mean" and "std" [b, h, w, C]; for SDXL "time_ids" float32
      [b, 6].
      Where there are any: "weight" float32 [b], what each image counts, "mask" float32
      [b, h, w, 1], what each place of its loss does, and "t" int32 [b], given timesteps.
    keys: [b], one an image.
    conditions: function of (batch, encode, keys) as `Adaptation.conditions`, or None.
    """
    def encode(images):
        return _encoded(vae, parts, images)

    batch = {**batch, **{n: as_float(batch[n]) for n in ("image", "original") if n in batch}}
    x_0 = clean_latents(vae, parts, batch, keys)
    given = noised(denoising, schedule, x_0, keys, timestep_mean, batch.get("t"))
    extra = Conditions() if conditions is None else conditions(batch, encode, keys)
    lost = extra.without_text
    lost = dropped(keys, caption_dropout) if lost is None else lost
    prompt = prompt_of(encoders, parts, batch, lost, clip_skip)
    t = given.t.astype(jnp.float32)
    added = residuals = None
    if "time_ids" in batch:
        added = {"text_embeds": prompt.pooled, "time_ids": batch["time_ids"]}
    if control is not None:
        residuals = control.apply(
            {"params": parts["controlnet"]}, given.x_t, t, prompt.context, extra.picture, added
        )
    x = given.x_t
    if extra.channels is not None:
        x = jnp.concatenate([x, extra.channels], axis=-1)
    rngs = {"dropout": network_key(keys)} if unet.config.dropout else None
    prediction = unet.apply(
        {"params": parts["unet"]}, x, t, prompt.context, added, controls=residuals, rngs=rngs
    )
    each = losses(denoising, schedule, given, prediction, mask=batch.get("mask"))
    return each * batch.get("weight", 1.0)


def embedded(encoders, parts, ids, clip_skip=0) -> Embedded:
    """What the U-Net is given of texts, ids [b, L] or [b, chunks, L] by the encoders' names."""
    networks, params = list(encoders.values()), [parts[name] for name in encoders]
    own = [ids[IDS[name]] for name in encoders]
    if own[0].ndim == 2:
        return embed(networks, params, own, clip_skip)
    # Without weights only the ids are looked at.
    chunks = [Chunks(each, None, None, None) for each in own]
    return embed_chunks(networks, params, chunks, None, clip_skip)


def prompt_of(encoders, parts, batch, lost, clip_skip):
    """The embedded captions, those of lost [b] empty ones."""
    def chosen(name):
        where = lost.reshape(-1, *(1,) * (batch[name].ndim - 1))
        return jnp.where(where, parts[f"empty_{name}"], batch[name])

    if "context" in batch:
        return Embedded(chosen("context"), chosen("pooled") if "pooled" in batch else None)
    ids = {IDS[name]: chosen(IDS[name]) for name in encoders}
    return embedded(encoders, parts, ids, clip_skip)
