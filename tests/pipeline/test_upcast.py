"""An autoencoder that overflows in float16, as SDXL's does, and says so by `force_upcast`."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch

import sdjax
from tests.pipeline.peers import torch_latents
from tests.weights.small import random_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline whose latents leave the first convolution of the decoder beyond 65504."""
    folder = tmp_path_factory.mktemp("overflowing")
    model = random_pipeline()
    vae = model.params["vae"]
    kernel = 6e4 * np.sign(vae["post_quant_conv"]["kernel"])
    vae = {**vae, "post_quant_conv": {**vae["post_quant_conv"], "kernel": kernel}}
    model.params = {**model.params, "vae": vae}
    assert model.vae.config.force_upcast
    model.save_pretrained(folder)
    return folder


def test_float16_models_decode_in_float32_as_diffusers(folder):
    model = sdjax.StableDiffusion.from_pretrained(folder, dtype="float16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params["vae"])} == {"float16"}
    given = {"steps": 2, "seed": 3, "progress": False}
    latents = model.generate("rocket", output="latents", **given)
    ours = model.generate("rocket", output="numpy", **given)
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16)
    z = torch_latents(latents / vae.config.scaling_factor)
    with torch.no_grad():
        theirs = vae.to(torch.float32).decode(z).sample.clamp(-1, 1).numpy().transpose(0, 2, 3, 1)
    assert np.isfinite(theirs).all() and theirs.std() > 0.05
    error = np.mean(((ours - theirs) / 2) ** 2)
    assert -10 * np.log10(error) > 80  # dB of pixels in 0 … 1


def test_without_force_upcast_it_stays_float16(folder):
    model = sdjax.StableDiffusion.from_pretrained(folder)
    half = dataclasses.replace(model.vae, dtype=np.float16)
    plain = dataclasses.replace(
        half, config=dataclasses.replace(half.config, force_upcast=False)
    )
    for vae, dtype in ((half, np.float32), (plain, np.float16)):
        again = sdjax.StableDiffusion(
            model.unet, vae, model.text_encoders[0], model.tokenizers[0],
            model.scheduler_config, model.params,
        )  # fmt: skip
        assert again.vae.dtype == dtype
    pixels = plain.decode(model.params["vae"], np.ones((1, 8, 8, 4), np.float32))
    assert not np.isfinite(pixels).all()
