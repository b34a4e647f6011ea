"""Adapters of pictures together with windows, seamless pictures, regions and a second pass."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import sdjax
from tests.models.peers import randomised
from tests.pipeline import test_ip_adapter
from tests.pipeline.peers import PROMPTS
from tests.pipeline.test_t2i_adapter import ADAPTERS, SIZE, STEPS, ours, picture

SHOWN = picture(3)


@pytest.fixture(scope="module")
def finished():
    return lambda kind, folder: test_ip_adapter.encoder(folder)


@pytest.fixture(scope="module")
def shown(folder):
    """An IP-Adapter that shows a picture."""
    _, adapter = test_ip_adapter.adapter(folder, "sd1", "plain")
    return adapter(SHOWN, scale=0.7)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A T2I-Adapter, to be called with a picture."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("adapter")
    randomised(diffusers.T2IAdapter(**ADAPTERS["sd1"])).save_pretrained(path)
    return sdjax.T2IAdapter.from_pretrained(path)


def latents_of(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_each_window_sees_the_picture_that_is_shown(model, shown):
    """A single step is linear in the predictions: their average is that of the windows' latents."""
    latents = latents_of(1, 12, 16, 4)
    options = {"steps": 1, "sampler": "ddim", "output": "latents", "controls": [shown]}
    made = ours(model, latents=latents, windows=(16, 8), **options)
    total, count = np.zeros_like(latents), np.zeros_like(latents)
    for top in (0, 4):
        for left in (0, 4, 8):
            part = np.s_[:, top : top + 8, left : left + 8]
            total[part] += ours(model, latents=latents[part], height=16, width=16, **options)
            count[part] += 1
    np.testing.assert_allclose(made, total / count, atol=2e-5 * np.abs(made).max())
    bare = ours(model, latents=latents, windows=(16, 8), **{**options, "controls": []})
    assert np.abs(made - bare).max() > 5e-4


@pytest.mark.parametrize("windows", [None, (16, 8)])
def test_a_seamless_picture_rolls_with_what_steers_it(model, shown, drawn, windows):
    latents = latents_of(1, 12, 16, 4)
    pixels = np.asarray(picture(5))

    def made(shift):
        rolled = Image.fromarray(np.roll(pixels, (2 * shift, 2 * shift), (0, 1)))
        return ours(
            model, latents=np.roll(latents, (shift, shift), (1, 2)), tile="xy", windows=windows,
            controls=[drawn(rolled, scale=0.8), shown], steps=2,
        )  # fmt: skip

    np.testing.assert_allclose(np.roll(made(0), (8, 8), (1, 2)), made(4), atol=2e-4)


def test_regions_keep_what_steers_them(model, shown, drawn):
    steered = {"controls": [drawn(picture(5)), shown], "steps": 2, "output": "latents"}
    everywhere = sdjax.Region(PROMPTS[1], np.ones(SIZE, np.float32))
    made = ours(model, regions=[everywhere], **steered)
    height, width = SIZE
    expected = model.generate(
        PROMPTS[1], height=height, width=width, guidance_scale=5.0, seed=7, noise="torch", **steered
    )
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_a_second_pass_is_steered_too(model, shown, drawn):
    options = {"controls": [drawn(picture(5), scale=0.8), shown], "output": "pil"}
    made = ours(model, hires=1.5, hires_by="lanczos", hires_strength=0.6, **options)
    (first,) = ours(model, **options)
    first = first.resize((48, 36), Image.Resampling.LANCZOS)
    expected = ours(model, height=36, width=48, image=first, strength=0.6, steps=STEPS, **options)
    np.testing.assert_array_equal(np.asarray(made[0]), np.asarray(expected[0]))
