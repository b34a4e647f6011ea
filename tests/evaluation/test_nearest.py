import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.evaluation.nearest import nearest, nearest_rate
from sdjax.evaluation.reconstruction import psnr

RANDOM = np.random.default_rng(0)


def test_nearest_is_brute_force():
    queries, references = RANDOM.normal(size=(7, 4, 4, 3)), RANDOM.normal(size=(300, 4, 4, 3))
    distances = np.square(queries[:, None] - references[None]).sum((2, 3, 4))
    np.testing.assert_array_equal(nearest(queries, references, 5),
                                  np.argsort(distances, axis=1)[:, :5])
    with pytest.raises(SdjaxError):
        nearest(queries, references, 301)
    with pytest.raises(SdjaxError, match="one size"):
        nearest(queries[:, :2], references)


def test_rate():
    references = RANDOM.normal(size=(20, 8, 8, 3))
    names = [f"picture {i // 2}" for i in range(20)]  # two pictures a caption
    made = references[[0, 3, 4, 6]] + 0.01
    rate = nearest_rate(made, ["picture 0", "picture 1", "picture 2", "picture 0"],
                        references, names)
    assert rate.first == 0.75 and rate.among_five >= 0.75
    assert rate.indices.shape == (4, 5) and rate.indices[:, 0].tolist() == [0, 3, 4, 6]
    assert rate.right.tolist() == [True, True, True, False]
    with pytest.raises(SdjaxError, match="'picture x'"):
        nearest_rate(made[:1], ["picture x"], references, names)
    with pytest.raises(SdjaxError, match="a caption a picture"):
        nearest_rate(made, ["picture 0"], references, names)


def test_psnr():
    image = RANDOM.uniform(-1, 0.5, (2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(psnr(image, image + np.float32(0.2)), 20, atol=1e-4)
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert psnr(black, white) == [0] and psnr(black, black) == [np.inf]
    with pytest.raises(SdjaxError, match="one shape and dtype"):
        psnr(black, image)
