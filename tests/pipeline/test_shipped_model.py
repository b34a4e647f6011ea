"""The model that comes with the project, in PyTorch diffusers and here."""

import logging

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

import sdjax


def test_diffusers_draws_the_same_picture(caplog, monkeypatch):
    """The weights are float16, the computation float32 on both sides: 1e-3 of pixels in 0 … 1.

    The guidance is the model's own, which diffusers is to pass over without a word.
    """
    prompt, steps, scale = "penguin", 10, 2.0
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    peer = StableDiffusionPipeline.from_pretrained(sdjax.EMOJI, torch_dtype=torch.float32)
    assert not caplog.records
    peer.set_progress_bar_config(disable=True)
    theirs = peer(
        prompt, num_inference_steps=steps, guidance_scale=scale, output_type="np",
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip
    model = sdjax.StableDiffusion.from_pretrained(sdjax.EMOJI)
    assert model.guidance_scale == scale
    ours = model.generate(prompt, steps=steps, seed=7, noise="torch", output="numpy")[0]
    ours = np.asarray(ours) / 2 + 0.5
    assert theirs.shape == ours.shape == (64, 64, 3)
    assert theirs.std() > 0.1  # a picture, not a plain field
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
