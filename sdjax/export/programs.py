"""The three programs of an exported model, as functions with named inputs and outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.export.layout import DECODER, TEXT, UNET
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.pipeline.compiled import arrays, coding
from sdjax.text.encode import embed


class Exported(NamedTuple):
    """A program: `function(params, *inputs)` gives a tuple, an array for each of `outputs`."""

    function: Callable
    params: Any
    inputs: dict[str, jax.ShapeDtypeStruct]
    """Name -> shape and dtype, in the order of the arguments."""
    outputs: tuple[str, ...]

    def closed(self) -> Callable:
        """The function of the inputs alone, its parameters constants of the program."""
        return lambda *inputs: self.function(self.params, *inputs)


def programs(model, shape: tuple[int, int, int], batch: int) -> dict[str, Exported]:
    """A model's text encoder, U-Net and decoder for pictures of one size.

    model: a `StableDiffusion` of the plain kind, that draws from prompts alone. shape: of the
    latents, [h, w, C]. batch: predictions that a call of the U-Net makes.

    text_encoder: ids int32[1, L], of SDXL ids_2 too -> context [1, L, D], and pooled [1, P].
    unet: sample [batch, h, w, C], timestep [batch], context [batch, L, D], of SDXL pooled
        [batch, P] and time_ids [batch, 6], of networks distilled with guidance guidance_scale
        [batch] -> prediction [batch, h, w, C]
    decoder: latents [1, h, w, C] in the U-Net's scale -> pixels [1, H, W, 3] in [-1, 1]
    All are float32 but for the ids. Raises SdjaxError for a model of another kind.
    """
    config = model.unet.config
    if config.in_channels != shape[-1] or config.out_channels != shape[-1]:
        raise SdjaxError(
            "export takes models that draw from prompts alone: this U-Net sees "
            f"{config.in_channels} channels and predicts {config.out_channels}, expected {shape[-1]} of both"
        )
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise SdjaxError("export takes models that draw from prompts alone: this U-Net has classes")
    text = _text(model)
    embedded = jax.eval_shape(text.function, text.params, *text.inputs.values())
    return {
        TEXT: text,
        UNET: _unet(model, shape, batch, dict(zip(text.outputs, embedded, strict=True))),
        DECODER: _decoder(model, shape),
    }


def _text(model) -> Exported:
    names = ("ids", "ids_2")[: len(model.text_encoders)]
    params = tuple(model.params[part] for part in model.encoder_parts)

    def text_encoder(params, *ids):
        made = embed(model.text_encoders, params, ids)
        return tuple(leaf.astype(jnp.float32) for leaf in made if leaf is not None)

    inputs = {
        name: jax.ShapeDtypeStruct((1, tokenizer.max_length), np.int32)
        for name, tokenizer in zip(names, model.tokenizers, strict=True)
    }
    count = len(jax.eval_shape(text_encoder, params, *inputs.values()))
    return Exported(text_encoder, params, inputs, ("context", "pooled")[:count])


def _unet(model, shape, batch, embedded) -> Exported:
    config, network = model.unet.config, model.unet
    told = config.addition_embed_type == "text_time"
    distilled = config.time_cond_proj_dim is not None

    def float32(*shape):
        return jax.ShapeDtypeStruct((batch, *shape), np.float32)

    inputs = {
        "sample": float32(*shape),
        "timestep": float32(),
        "context": float32(*embedded["context"].shape[1:]),
    }
    if told:
        width = config.projection_class_embeddings_input_dim - embedded["pooled"].shape[-1]
        count = width // config.addition_time_embed_dim
        inputs |= {"pooled": float32(*embedded["pooled"].shape[1:]), "time_ids": float32(count)}
    if distilled:
        inputs["guidance_scale"] = float32()

    def unet(params, sample, timestep, context, *more):
        more, added, scale = list(more), None, None
        if told:
            added = {"text_embeds": more.pop(0), "time_ids": more.pop(0)}
        if distilled:  # as `compiled.programs` has it
            scale = sinusoidal_embedding(
                1000 * (more.pop(0) - 1), config.time_cond_proj_dim,
                cosine_first=False, frequency_shift=1,
            )  # fmt: skip
        made = network.apply({"params": params}, sample, timestep, context, added, scale)
        return (made.astype(jnp.float32),)

    return Exported(unet, model.params["unet"], inputs, ("prediction",))


def _decoder(model, shape) -> Exported:
    def decoder(params, latents):
        return (coding.latents_to_pixels(arrays.Coder(model.vae), params, latents),)

    params = model.params["vae"]
    params = {name: params[name] for name in params if name not in ("encoder", "quant_conv")}
    inputs = {"latents": jax.ShapeDtypeStruct((1, *shape), np.float32)}
    return Exported(decoder, params, inputs, ("pixels",))
