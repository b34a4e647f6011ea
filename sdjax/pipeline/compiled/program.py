"""A whole generation as one pure function, for code that computes with it."""

import dataclasses

import jax
import jax.numpy as jnp

from sdjax.pipeline.compiled import arrays, coding, programs


@dataclasses.dataclass(frozen=True)
class Program:
    """Latents, settings and prompts to pictures, as `StableDiffusion.program` makes it.

    A pure function of (params, inputs) under jit, grad, vmap, pmap and export: nothing is closed
    over but the networks' configurations. With gradients the loop of the sampler is followed back
    step by step; its table has a fixed length, so it can be.
    """

    networks: arrays.Networks
    coder: arrays.Coder | None
    """None where the result is latents."""
    remat: bool
    inputs: arrays.Inputs = dataclasses.field(compare=False, repr=False)
    """What `generate` would have started from: `latents` of unit-variance noise, and so on."""

    def __call__(self, params, inputs: arrays.Inputs) -> jax.Array:
        """float32[N, H, W, 3] in [-1, 1], or latents [N, h, w, C] in the U-Net's scale.

        params: {"unet", "controls", "vae"}. inputs: `inputs`, or the same with other values.
        """
        latents, settings, images = jax.tree.map(jnp.asarray, inputs)
        deep = arrays.Deep.of(self.networks.unet, inputs)
        begun = programs.begin(deep, settings.table, latents)
        done = programs.noise_to_latents(
            self.networks, False, params, settings, images, begun, self.remat
        )
        if self.coder is None:
            return done.x
        return coding.latents_to_pixels(self.coder, params["vae"], done.x)

