"""Latent text-to-image diffusion: the objective."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import diffusion
from sdjax.errors import SdjaxError, check_at_least
from sdjax.models.clip import TextEncoder, TextEncoderConfig
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.models.vae import VAE, VAEConfig
from sdjax.parallel import map_over_devices
from sdjax.text.vocabulary import SMALLEST_VOCABULARY
from sdjax.training.loop.config import RunConfig

from .curriculum import Lesson
from .denoising import DenoisingConfig, check_known
from .latent_loss import latent_loss
from .sheets import SheetConfig


@dataclass(frozen=True)
class LatentRun(RunConfig):
    """Training of a text-to-image U-Net in a frozen autoencoder's latents (arXiv 2112.10752)."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    """Its vocabulary size and special tokens are set from the tokenizer."""
    train_text_encoder: bool = True
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    caption_dropout: float = 0.1
    """Share of images trained with the empty prompt, for guidance (arXiv 2207.12598)."""
    vocab_size: int = 2048
    """Largest vocabulary to learn from the captions, where no tokenizer is given."""
    curriculum: tuple[Lesson, ...] = ()
    """What is drawn first, in order; then everything."""
    cache_latents: bool = True
    """Encode the whole set once and keep it in memory; for sets that fit there."""
    sheet: SheetConfig = field(default_factory=SheetConfig)

    def __post_init__(self):
        super().__post_init__()
        check_known(self.denoising)
        check_at_least(SMALLEST_VOCABULARY, self, "vocab_size")
        width, context = self.text_encoder.hidden_size, self.unet.cross_attention_dim
        if width != context:
            raise SdjaxError(
                f"unet.cross_attention_dim must be the text encoder's hidden_size {width}, "
                f"got {context}"
            )
        if not 0 <= self.caption_dropout < 1:
            raise SdjaxError(f"caption_dropout must be in [0, 1), got {self.caption_dropout}")
        if self.curriculum and not self.cache_latents:
            raise SdjaxError("a curriculum needs cache_latents, where all captions are at hand")
        if self._shifts and self.denoising.timesteps != "logit_normal":
            raise SdjaxError(
                f"a lesson's timestep_mean shifts logit_normal timesteps, not "
                f"{self.denoising.timesteps}"
            )

    @property
    def _shifts(self):
        return any(lesson.timestep_mean is not None for lesson in self.curriculum)

    def timestep_mean(self, lesson):
        """Mean of the timesteps' logits in `lesson`, int [b], len(curriculum) after the last; float
        [b], or None where no lesson has one of its own.
        """
        if not self._shifts:
            return None
        usual = self.denoising.timestep_mean
        own = [each.timestep_mean for each in self.curriculum]
        return jnp.array([*(usual if mean is None else mean for mean in own), usual])[lesson]


@dataclass(frozen=True)
class LatentObjective:
    """Denoising of latents under a caption.

    vae: configuration of the frozen autoencoder. The trainable tree is {"unet": …} and, where it
    is trained, {"text_encoder": …}. The frozen tree of the loss is {"empty_ids": int32 [L]}, with
    "vae" where batches hold images, and "text_encoder" where that is frozen; the sheet always
    wants "vae".
    """

    config: LatentRun
    vae: VAEConfig

    @property
    def _unet(self):
        return UNet(self.config.unet, self.config.dtype, self.config.remat_kind)

    @property
    def _text(self):
        return TextEncoder(self.config.text_encoder, self.config.dtype, self.config.remat_kind)

    def init(self, key, frozen=None):
        """Fresh trainable parameters."""
        del frozen
        unet_key, text_key = jax.random.split(key)
        config = self.config.unet
        length = self.config.text_encoder.max_position_embeddings
        params = {"unet": self._unet.init(
            unet_key,
            jnp.zeros((1, *self._latent_size(), config.in_channels)),
            jnp.zeros(()),
            jnp.zeros((1, length, config.cross_attention_dim)),
        )["params"]}
        if self.config.train_text_encoder:
            ids = jnp.zeros((1, length), jnp.int32)
            params["text_encoder"] = self._text.init(text_key, ids)["params"]
        return params

    def loss(self, params, frozen, batch, keys):
        """Of a batch with "ids" int32 [b, L], and either "image" [b, H, W, 3] (uint8 or in
        [-1, 1]) or the cached posterior, "mean" and "std" [b, h, w, C]. With a curriculum
        there is "lesson" int [b], len(curriculum) after the last.
        """
        config = self.config
        return latent_loss(
            self._unet, VAE(self.vae, config.dtype), {"text_encoder": self._text},
            {**frozen, **params}, batch, keys, denoising=config.denoising,
            schedule=config.denoising.schedule.build(), caption_dropout=config.caption_dropout,
            timestep_mean=config.timestep_mean(batch.get("lesson")),
        )

    def sheet(self, frozen, ids):
        """A function ema -> images float32 [n, H, W, 3], guided, of prompts' ids int32 [n, L].

        Prompt i starts from the noise of sheet.seed and i.
        """
        config = self.config.sheet
        table = config.table(self.config.denoising)
        shape = (*self._latent_size(), self.config.unet.in_channels)

        def generate(shared, ids, seeds):
            params, frozen = shared
            keys = jax.vmap(jax.random.key)(seeds)
            both = jnp.concatenate([ids, jnp.broadcast_to(frozen["empty_ids"], ids.shape)])
            context = self._context(params, frozen, both)

            def denoise(x, t):
                twice = jnp.concatenate([x, x])
                out = self._unet.apply({"params": params["unet"]}, twice, t, context)
                return diffusion.classifier_free_guidance(*jnp.split(out, 2), config.guidance_scale)

            noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), shape))(keys)
            z = diffusion.sample(
                denoise, table, noise, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
            )
            return VAE(self.vae).decode(frozen["vae"], z / self.vae.scaling_factor)

        program = map_over_devices(generate, items=2)
        seeds = config.seed + np.arange(len(ids), dtype=np.uint32)
        return lambda ema: program((ema, frozen), np.asarray(ids), seeds)

    def _context(self, params, frozen, ids):
        text = params.get("text_encoder", frozen.get("text_encoder"))
        return self._text.apply({"params": text}, ids).last_hidden_state

    def _latent_size(self):
        size = self.config.unet.sample_size
        return size if isinstance(size, tuple) else (size, size)
