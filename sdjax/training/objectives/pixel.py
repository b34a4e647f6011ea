"""Diffusion in pixel space, unconditional or by class: the objective."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import diffusion
from sdjax.errors import SdjaxError
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.parallel import map_over_devices
from sdjax.training.loop.config import RunConfig

from .autoencoder import as_float
from .denoising import (
    DenoisingConfig,
    ScheduleConfig,
    check_known,
    dropped,
    losses,
    network_key,
    noised,
)
from .sheets import SheetConfig


@dataclass(frozen=True)
class PixelRun(RunConfig):
    """Training of a DDPM (arXiv 2006.11239) in pixels.

    A U-Net with num_class_embeds learns the classes of the data's labels; with class_dropout its
    last class is the empty one, kept for guidance.
    """

    unet: UNetConfig = field(default_factory=lambda: UNetConfig.from_dict(
        {"_class_name": "UNet2DModel", "sample_size": 32, "norm_num_groups": 32}
    ))
    denoising: DenoisingConfig = field(default_factory=lambda: DenoisingConfig(
        ScheduleConfig("linear", 1e-4, 0.02), prediction="epsilon"
    ))
    class_dropout: float = 0.0
    learned_variance: bool = False
    """Learn the reverse variance by the hybrid loss (arXiv 2102.09672); the U-Net then has twice
    as many out_channels as in_channels."""
    cache_images: bool = True
    """Keep the whole set in memory; for sets that fit there."""
    sheet: SheetConfig = field(default_factory=lambda: SheetConfig(steps=50, guidance_scale=1.0))

    def __post_init__(self):
        super().__post_init__()
        check_known(self.denoising)
        if not 0 <= self.class_dropout < 1:
            raise SdjaxError(f"class_dropout must be in [0, 1), got {self.class_dropout}")
        wanted = self.unet.in_channels * (1 + self.learned_variance)
        if self.unet.out_channels != wanted:
            raise SdjaxError(f"unet.out_channels must be {wanted}, got {self.unet.out_channels}")
        even = self.denoising.weighting == self.denoising.timesteps == "uniform"
        if self.learned_variance and not even:
            raise SdjaxError("learned_variance needs uniform weighting and timesteps")
        if self.class_dropout and not self.unet.num_class_embeds:
            raise SdjaxError("class_dropout needs a U-Net with num_class_embeds")
        if self.unet.cross_attention_dim is not None:
            raise SdjaxError("a pixel model has no text: unet.cross_attention_dim must be None")
        if self.sheet.guidance_scale != 1 and not self.class_dropout:
            raise SdjaxError("sheet.guidance_scale other than 1 needs class_dropout")

    @property
    def classes(self):
        """Number of true classes, 0 for an unconditional model."""
        return (self.unet.num_class_embeds or 0) - bool(self.class_dropout)


@dataclass(frozen=True)
class PixelObjective:
    """Denoising of images. The trainable tree is {"unet": …}; nothing is frozen."""

    config: PixelRun

    @property
    def _unet(self):
        return UNet(self.config.unet, self.config.dtype, self.config.remat_kind)

    def init(self, key, frozen=None):
        """Fresh trainable parameters."""
        del frozen
        labels = jnp.zeros((1,), jnp.int32) if self.config.unet.num_class_embeds else None
        x = jnp.zeros((1, *self._image_shape()))
        return {"unet": self._unet.init(key, x, jnp.zeros(()), class_labels=labels)["params"]}

    def loss(self, params, frozen, batch, keys):
        """Of batch["image"], uint8 or float in [-1, 1], [b, H, W, C], and, for a model of classes,
        batch["label"], int32 [b].
        """
        del frozen
        config = self.config
        schedule = config.denoising.schedule.build()
        given = noised(config.denoising, schedule, as_float(batch["image"]), keys)
        labels = None
        if config.unet.num_class_embeds:
            labels = batch["label"]
            if config.class_dropout:
                labels = jnp.where(dropped(keys, config.class_dropout), config.classes, labels)
        rngs = {"dropout": network_key(keys)} if config.unet.dropout else None
        output = self._predict(params, given.x_t, given.t.astype(jnp.float32), labels, rngs)
        return losses(config.denoising, schedule, given, *output).mean(), {}

    def _predict(self, params, x, t, labels, rngs=None):
        """(prediction,), or (prediction, variance fraction in 0 … 1)."""
        out = self._unet.apply({"params": params["unet"]}, x, t, class_labels=labels, rngs=rngs)
        if not self.config.learned_variance:
            return (out,)
        prediction, variance = jnp.split(out, 2, axis=-1)
        return prediction, (variance + 1) / 2

    def sheet(self):
        """A function ema -> images float32 [n, H, W, C], of the classes in turn where there are.

        Image i starts from the noise of sheet.seed and i.
        """
        config = self.config.sheet
        table = config.table(self.config.denoising, 1.0, self.config.learned_variance)
        shape, classes = self._image_shape(), self.config.classes

        def generate(params, labels, seeds):
            keys = jax.vmap(jax.random.key)(seeds)

            def denoise(x, t):
                if config.guidance_scale == 1:
                    output = self._predict(params, x, t, labels if classes else None)
                    return output if self.config.learned_variance else output[0]
                both = jnp.concatenate([labels, jnp.full_like(labels, classes)])
                output = self._predict(params, jnp.concatenate([x, x]), t, both)
                pairs = [jnp.split(array, 2) for array in output]
                guided = diffusion.classifier_free_guidance(*pairs[0], config.guidance_scale)
                return (guided, pairs[1][0]) if self.config.learned_variance else guided

            noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), shape))(keys)
            return diffusion.sample(
                denoise, table, noise, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
            )

        program = map_over_devices(generate, items=2)
        labels = np.arange(config.images, dtype=np.int32) % max(classes, 1)
        seeds = config.seed + np.arange(config.images, dtype=np.uint32)
        return lambda ema: program(ema, labels, seeds)

    def _image_shape(self):
        size = self.config.unet.sample_size
        size = size if isinstance(size, tuple) else (size, size)
        return (*size, self.config.unet.in_channels)
