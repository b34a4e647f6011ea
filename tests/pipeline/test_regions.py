"""Prompts for parts of a picture: averages of predictions, by formula and in pictures."""

import numpy as np
import pytest

import sdjax
from sdjax.pipeline.compiled import programs
from sdjax.pipeline.given import regions
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS


def test_predictions_are_averaged_by_the_masks():
    """c = (b·c₀ + Σ mₖ·cₖ)/(b + Σ mₖ), b = max(0, 1 − Σ mₖ), and u + s·(c − u) of it."""
    random = np.random.RandomState(0)
    masks = np.float32(random.rand(2, 8, 12))
    given = [sdjax.Region("a", masks[0], 0.8), sdjax.Region("b", masks[1])]
    fields = regions.fields(given, (8, 12), 4, 1, 1)
    assert fields.shape == (1, 3, 2, 3)
    m = [w * one.reshape(2, 4, 3, 4).mean((1, 3)) for w, one in zip((0.8, 1), masks, strict=True)]
    rest = np.maximum(0, 1 - m[0] - m[1])
    total = rest + m[0] + m[1]
    np.testing.assert_allclose(fields[0] * total, [rest, *m], rtol=1e-5, atol=1e-6)
    u, *c = np.float32(random.randn(4, 1, 2, 3, 5))
    weights = 7 * fields[..., None]
    made = programs._combined(np.stack([u, *c], 1), weights, 0.0)
    mean = sum(one[..., None] * x for one, x in zip((rest, *m), c, strict=True)) / total[..., None]
    np.testing.assert_allclose(made, u + 7 * (mean - u), atol=1e-5)


def test_pictures_with_regions(tmp_path):
    model = sdjax.StableDiffusion.from_pretrained(peers.make("sd1", tmp_path))
    options = {"steps": 3, "guidance_scale": 5.0, "output": "latents", "progress": False}
    left = np.zeros((16, 16), np.float32)
    left[:, :8] = 1

    def made(prompt, mask, weight=1.0, **others):
        region = sdjax.Region(PROMPTS[1], mask, weight)
        return model.generate(prompt, regions=[region], **options | others)

    plain = [model.generate(prompt, **options) for prompt in PROMPTS]
    everywhere = np.ones_like(left)
    np.testing.assert_allclose(made(PROMPTS[0], everywhere), plain[1], atol=1e-4)
    np.testing.assert_allclose(made(PROMPTS[0], left, 0.0), plain[0], atol=1e-4)
    half = made(PROMPTS[0], left)
    assert all(np.abs(half - one).max() > 1e-3 for one in plain)
    # A mask for each image, and each as it is alone.
    both = model.generate(
        PROMPTS[0], count=2, regions=[sdjax.Region(PROMPTS[1], [left, everywhere])], **options
    )
    np.testing.assert_allclose(both[0], half[0], atol=1e-4)
    alone = made(PROMPTS[0], everywhere, seed=1)
    np.testing.assert_allclose(both[1], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("red", np.ones((4, 4)), -1), "region's weight must be at least 0, got -1"),
        ((3, np.ones((4, 4))), "region's prompt must be text"),
        (("red", "no.png"), "no.png"),
    ],
)
def test_regions_that_are_none_are_refused(arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        sdjax.Region(*arguments)
