"""Pictures on the way: the same result with and without, and what they show."""

import jax
import numpy as np
import pytest

import sdjax
from sdjax.models.tiny_vae import TinyVAEConfig
from sdjax.pipeline.results import previews
from tests.weights.small import random_pipeline

OPTIONS = {
    "sampler": "euler", "steps": 5, "seed": [3, 4, 5], "output": "latents", "guidance_scale": 3,
    "batch_size": 2,
}  # fmt: skip
PROMPTS = ["red apple", "rocket", "red apple"]


@pytest.fixture(scope="module")
def model():
    return random_pipeline()


@pytest.fixture(scope="module")
def tiny():
    config = TinyVAEConfig(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    vae = sdjax.TinyVAE(config)
    return vae, vae.init(jax.random.key(0))


def test_previews_change_nothing_and_show_what_comes(model, tiny, monkeypatch):
    # That of a random autoencoder shows black and white only.
    matrix, offset = np.float32(0.01 * np.eye(4, 3)), np.float32([0, 0.1, -0.2])
    monkeypatch.setattr(previews, "linear_map", lambda *_: (matrix, offset))
    plain = model.generate(PROMPTS, **OPTIONS)
    compilations, seen, decoded = [], [], []
    model.generate(PROMPTS, preview=lambda *_: None, **{**OPTIONS, "steps": 1})
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    made = model.generate(PROMPTS, preview=lambda *told: seen.append(told), **OPTIONS)
    assert compilations == []
    np.testing.assert_array_equal(made, plain)
    assert [(step, steps) for step, steps, _ in seen] == [(i, 5) for i in range(1, 6)] * 2
    assert [len(pictures) for *_, pictures in seen] == [2] * 5 + [1] * 5
    last = seen[4][2]
    assert [picture.info["seed"] for picture in last] == [3, 4]
    # A deterministic sampler ends at what the last evaluation took for the picture.
    expected = plain[:2] @ matrix + offset
    shown = np.stack([np.asarray(picture) for picture in last])
    np.testing.assert_allclose(shown / 127.5 - 1, expected, atol=0.005)
    assert np.ptp(shown) > 10 and (np.asarray(seen[0][2][0]) != shown[0]).any()

    vae, params = tiny
    preview = sdjax.Preview(lambda *told: decoded.append(told), 2, vae, params)
    np.testing.assert_array_equal(model.generate(PROMPTS, preview=preview, **OPTIONS), plain)
    assert [step for step, *_ in decoded] == [2, 4, 5] * 2
    expected = np.clip(vae.decode(params, plain[:2]), -1, 1)
    shown = np.stack([np.asarray(picture) for picture in decoded[2][2]])
    np.testing.assert_allclose(shown / 127.5 - 1, expected, atol=0.02)


def test_the_linear_map_of_the_shipped_autoencoder_knows_colours():
    """On other patches than those it was fitted to; zero would be as good as one grey for all."""
    vae, params = sdjax.VAE.from_pretrained(sdjax.EMOJI)
    params = jax.device_put(params, sdjax.parallel.replicated())
    matrix, offset = previews.linear_map(vae, params)
    assert matrix.shape == (vae.config.latent_channels, 3) and offset.shape == (3,)
    colours = previews.patches(seed=1)
    shown = previews.latents_of(vae, params, colours) @ matrix + offset
    left = ((shown - colours) ** 2).mean((0, 1, 2)) / colours.var((0, 1, 2))
    assert (1 - left > 0.5).all(), 1 - left


@pytest.mark.parametrize(
    ("preview", "message"),
    [
        (3, r"preview must be a function of \(step, steps, pictures\), got 3"),
        (lambda: sdjax.Preview(print, 0), "every must be at least 1, got 0"),
        (lambda: sdjax.Preview(print, 1, sdjax.TinyVAE()), "give vae and params"),
        (lambda: sdjax.Preview(print, 1, 3, {}), "vae must be a TinyVAE or a VAE, got 3"),
        (
            lambda: sdjax.Preview(print, 1, sdjax.TinyVAE(TinyVAEConfig(latent_channels=16)), {}),
            "has 16 channels of latents, the model 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(model, preview, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        given = preview if isinstance(preview, int) else preview()
        model.generate("red apple", preview=given)
