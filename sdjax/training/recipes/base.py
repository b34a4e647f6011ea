"""The model that a recipe trains on top of: a checkpoint, or a published one's random twin."""

import dataclasses

import jax
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.parallel import Placement
from sdjax.pipeline import StableDiffusion
from sdjax.text.vocabulary import clip_tokenizer
from sdjax.weights.parts import VAE, TextEncoder, UNet
from sdjax.weights.published import PUBLISHED, published


def base_model(
    source, dtype: str = "float32", seed: int = 0, placement: Placement = Placement(),
    quantize: str | None = None,
) -> StableDiffusion:
    """The pipeline of a diffusers folder, a single file or a hub id, its parameters in `dtype`, or
    with `quantize` the large ones in few bits.

    "sd15", "sd21" and "sdxl" give the published architectures with random weights, for planning
    and tests.
    """
    if str(source) in PUBLISHED:
        model = _random(str(source), dtype, seed, placement)
        return model if quantize is None else model.quantized(quantize)
    return StableDiffusion.from_pretrained(
        source, dtype=dtype, placement=placement, quantize=quantize
    )


def based(recipe):
    """(the recipe with the size of its pictures, the model that it is trained on).

    Raises SdjaxError where there is none, or its sizes do not fit.
    """
    if recipe.model is None:
        raise SdjaxError(
            "this recipe trains on top of a model: name it by --model, a diffusers folder, a "
            "single file, a hub id, or sd15, sd21 or sdxl for random weights"
        )
    run = recipe.diffusion
    dtype, few = ("float32", None) if run is None else (run.base_dtype, run.quantize)
    model = base_model(recipe.model, dtype, placement=recipe.placement, quantize=few)
    factor, size = model.vae.config.downsampling, recipe.data.image_size
    if not size:
        own = model.unet.config.sample_size
        if own is None:
            raise SdjaxError(f"{recipe.model} says no size: set data.image_size")
        size = factor * (own if isinstance(own, int) else min(own))
    steps = factor * 2 ** (len(model.unet.config.block_out_channels) - 1)
    if size % factor:
        raise SdjaxError(
            f"data.image_size must be a multiple of {factor} for {recipe.model}, best of {steps}, "
            f"got {size}"
        )
    data = dataclasses.replace(recipe.data, image_size=size)
    return dataclasses.replace(recipe, data=data), model


def _random(name, dtype, seed, placement):
    configs = published(name)
    kinds = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder, "text_encoder_2": TextEncoder}
    networks, params = {}, {}
    random = np.random.default_rng(seed)
    for part, config in configs.items():
        if part == "scheduler":
            continue
        kind = kinds[part]
        configuration = kind.config_class.from_dict(config)
        networks[part] = kind(configuration, np.dtype(jax.numpy.dtype(dtype)))
        params[part] = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _drawn(path, leaf, random, dtype), kind.shapes(configuration)
        )
    second = {}
    if "text_encoder_2" in networks:
        second = {"text_encoder_2": networks["text_encoder_2"], "tokenizer_2": clip_tokenizer("!")}
    return StableDiffusion(
        networks["unet"], networks["vae"], networks["text_encoder"],
        clip_tokenizer(*(["!"] if name == "sd21" else [])), configs["scheduler"], params,
        zero_negative=name == "sdxl", placement=placement, **second,
    )


def _drawn(path, leaf, random, dtype):
    """Kernels of about unit gain, scales of one, biases of zero."""
    kind = path[-1].key
    if kind == "scale":
        return jax.numpy.ones(leaf.shape, dtype)
    if kind == "bias":
        return jax.numpy.zeros(leaf.shape, dtype)
    inputs = int(np.prod(leaf.shape[:-1])) if kind == "kernel" else 2500
    drawn = random.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(inputs))
    return jax.numpy.asarray(drawn, dtype)
