"""Noise of several resolutions against its published formula in PyTorch, on the same draws."""

import jax
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.training import DenoisingConfig
from sdjax.training.objectives.denoising import noised
from sdjax.training.objectives.pyramid import draws, pyramid_noise


def published(noise, iterations, discount, drawn):
    """As the report has it, drawn(i) -> (r, noise of the full size)."""
    _, _, height, width = noise.shape
    enlarge = torch.nn.Upsample(size=(height, width), mode="bilinear")
    for i in range(iterations):
        r, whole = drawn(i)
        h, w = max(1, int(height / r**i)), max(1, int(width / r**i))
        noise = noise + enlarge(whole[..., :h, :w]) * discount**i
        if h == 1 or w == 1:
            break
    return noise / noise.std()


@pytest.mark.parametrize(("size", "iterations"), [((24, 40), 6), ((9, 5), 3), ((16, 16), 1)])
def test_it_is_the_published_noise(size, iterations):
    key, shape = jax.random.key(3), (*size, 4)
    noise = jax.random.normal(jax.random.key(1), shape)

    def drawn(i):
        r, whole = draws(jax.random.fold_in(key, i), shape)
        return float(r), torch.from_numpy(np.array(whole).transpose(2, 0, 1)[None])

    wanted = published(
        torch.from_numpy(np.array(noise).transpose(2, 0, 1)[None]), iterations, 0.4, drawn)
    found = jax.jit(pyramid_noise, static_argnums=(2, 3))(key, noise, iterations, 0.4)
    np.testing.assert_allclose(
        np.asarray(found).transpose(2, 0, 1), wanted[0].numpy(), rtol=1e-5, atol=2e-6)


def test_an_image_has_the_same_noise_alone_and_in_a_batch():
    config = DenoisingConfig(pyramid_iterations=4, pyramid_discount=0.3, stratified=False)
    keys = jax.random.split(jax.random.key(0), 3)
    x = np.zeros((3, 8, 8, 2), np.float32)
    together = noised(config, config.schedule.build(), x, keys)
    alone = noised(config, config.schedule.build(), x[1:2], keys[1:2])
    np.testing.assert_allclose(together.noise[1], alone.noise[0], rtol=1e-6)
    plain = noised(DenoisingConfig(stratified=False), config.schedule.build(), x, keys)
    assert np.abs(np.corrcoef(together.noise[0, 0, :, 0], together.noise[0, 1, :, 0])[0, 1]) > \
        np.abs(np.corrcoef(plain.noise[0, 0, :, 0], plain.noise[0, 1, :, 0])[0, 1])
    with pytest.raises(SdjaxError, match="of pictures"):
        noised(config, config.schedule.build(), x[:, 0], keys)
