import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.evaluation.distances import frechet_distance
from sdjax.evaluation.features import FUNCTIONS, edges, extract, feature_function, pixels

RANDOM = np.random.default_rng(0)


def discs(count, noise=0.0):
    """Coloured discs at random places, uint8 [count, 32, 32, 3]."""
    grid = np.mgrid[:32, :32]
    centre = RANDOM.uniform(10, 22, (count, 2, 1, 1))
    inside = (np.square(grid - centre).sum(1) < 64)[..., None]
    color = RANDOM.uniform(0, 255, (count, 1, 1, 3))
    images = np.where(inside, color, 255) + RANDOM.normal(size=(count, 32, 32, 3)) * noise
    return images.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name, width", [("default", 896), ("pixels", 192), ("edges", 512),
                                         ("textures", 192)])
def test_shapes_and_determinism(name, width):
    images = RANDOM.uniform(-1, 1, (3, 48, 48, 3)).astype(np.float32)
    found = extract(feature_function(name), images)
    assert found.shape == (3, width) and found.dtype == np.float64 and np.isfinite(found).all()
    np.testing.assert_allclose(extract(FUNCTIONS[name], images[1:2]), found[1:2], atol=1e-5)


def test_uint8_equals_float():
    images = discs(4)
    np.testing.assert_allclose(extract(pixels, images),
                               extract(pixels, images.astype(np.float32) / 127.5 - 1), atol=1e-6)


def test_edges_see_direction():
    stripes = np.sign(np.sin(np.arange(64) * np.pi / 4 + 0.1)).astype(np.float32)
    across = np.broadcast_to(stripes[None, None, :, None], (1, 64, 64, 3))
    down = np.swapaxes(across, 1, 2)
    cells = np.asarray(edges(np.concatenate([across, down]))).reshape(2, 8, 8, 8).mean((1, 2))
    assert cells[0].argmax() == 0 and cells[1].argmax() == 4
    assert np.asarray(edges(np.full((1, 64, 64, 3), 0.3, np.float32))).max() < 1e-3


def test_the_distance_grows_with_damage():
    function = feature_function("default")
    real = extract(function, discs(200))
    distances = [frechet_distance(real, extract(function, discs(200, noise)))
                 for noise in (0, 10, 40)]
    assert distances[0] < distances[1] < distances[2]
    assert distances[2] > 3 * distances[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_features_of_a_flat_picture_have_a_gradient(name):
    """As a perceptual loss of an autoencoder needs it."""
    function = feature_function(name)
    gradient = jax.grad(lambda images: (function(images) ** 2).sum())(jnp.full((1, 16, 16, 3), 0.3))
    assert np.isfinite(gradient).all()


def test_functions_by_import_path_and_errors():
    assert feature_function("numpy:asarray") is np.asarray
    for name in ("defualt", "numpy:nothing", "no_such_module:f", ":f"):
        with pytest.raises(SdjaxError, match=repr(name)):
            feature_function(name)
    with pytest.raises(SdjaxError, match="N, D"):
        extract(lambda images: images, discs(2))
    with pytest.raises(SdjaxError, match="H, W, 3"):
        extract(pixels, np.zeros((0, 8, 8, 3)))
