"""The adversary of an autoencoder: a discriminator, its loss, and how much it counts."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError, check_at_least
from sdjax.models.patch_discriminator import PatchDiscriminator
from sdjax.training.loop.config import OptimizerConfig

LARGEST, FLOOR = 1e4, 1e-4  # of the adaptive weight, and beside the length that it is divided by


@dataclass(frozen=True)
class AdversaryConfig:
    """A patch discriminator trained beside the autoencoder (arXiv 2012.09841, 2112.10752)."""

    start: int = 0
    """The step from which it is trained and counts; 50000 in latent diffusion, 0 on top of an
    autoencoder that is there."""
    weight: float = 0.5
    """What it counts, times the adaptive weight."""
    width: int = 64
    """Of its first convolution."""
    layers: int = 3
    """How often it halves the picture, less one."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(
        learning_rate=4.5e-6, schedule="constant", warmup_steps=0, beta_1=0.5, beta_2=0.9,
        weight_decay=0.0, clip_norm=0.0,
    ))
    """Its own."""

    def __post_init__(self):
        check_at_least(0, self, "start", "weight")
        check_at_least(1, self, "width", "layers")

    @property
    def network(self) -> PatchDiscriminator:
        """The discriminator."""
        return PatchDiscriminator(self.width, self.layers)

    def init(self, key, images):
        """Its parameters before the first update."""
        return self.network.init(key, images)["params"]

    def losses(self, params, images, decoded):
        """(the autoencoder's, the discriminator's), float32 [] each, of images and what is decoded,
        [b, H, W, 3]. The first has no gradient for the discriminator, the second none for the
        autoencoder.
        """
        def score(params, images):
            scores = self.network.apply({"params": params}, images)
            if not scores.size:
                raise SdjaxError(
                    f"pictures of {images.shape[2]}x{images.shape[1]} are too small for the "
                    f"adversary: lower adversary.layers, {self.layers}"
                )
            return scores

        fooled = -score(jax.lax.stop_gradient(params), decoded).mean()
        real, fake = score(params, images), score(params, jax.lax.stop_gradient(decoded))
        hinge = 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())
        return fooled, hinge


def adaptive_weight(rest, adversarial):
    """|∇ rest| / (|∇ adversarial| + 1e-4), at most 1e4, of gradients at the decoder's last layer
    (arXiv 2012.09841, equation 7); a constant for the gradient.
    """
    weight = jnp.linalg.norm(rest.ravel()) / (jnp.linalg.norm(adversarial.ravel()) + FLOOR)
    return jax.lax.stop_gradient(jnp.clip(weight, 0, LARGEST))
