"""Another number of pictures runs what is compiled, and draws the same pictures."""

import jax
import numpy as np
import pytest

from sdjax.pipeline.compiled import sizes
from tests.weights.small import random_pipeline

SETTINGS = {"steps": 2, "output": "numpy", "progress": False}


@pytest.fixture
def compilations():
    """The names of what is compiled meanwhile."""
    made = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            made.append(name)

    sizes.compiled.cache_clear()  # of pictures that other tests made
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield made
    jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_is_compiled_for_another_number_of_pictures(compilations):
    model = random_pipeline()
    first = model.generate("red apple", seed=5, count=4, **SETTINGS)
    assert compilations and len(first) == 4
    compilations.clear()
    for count in (3, 5, 2, 8):
        made = model.generate(
            ["rocket"] * count, "red", seed=[9] * (count - 1) + [7], steps=5, sampler="euler_a",
            guidance_scale=3.0, output="numpy", progress=False,
        )  # fmt: skip
        assert len(made) == count
    again = model.generate("red apple", seed=5, count=3, **SETTINGS)
    np.testing.assert_allclose(again, first[:3], atol=2e-6)
    assert compilations == []
    # One alone has a program of its own, of which any number can be made.
    alone = model.generate("red apple", seed=7, **SETTINGS)
    np.testing.assert_allclose(alone[0], first[2], atol=2e-6)
    assert compilations


def test_after_one_picture_several_compile_nothing(compilations):
    model = random_pipeline()
    first = model.generate("red apple", seed=5, **SETTINGS)
    compilations.clear()
    made = model.generate("red apple", seed=4, count=3, **SETTINGS)
    np.testing.assert_allclose(made[1], first[0], atol=2e-6)
    assert compilations == []


def test_sizes():
    def chosen(total, wanted=None, known=()):
        return sizes.at_once(total, wanted, set(known))

    # Few sizes, at most 1.34 times what is asked for from 3 to 8, and one alone alone.
    new = [chosen(total) for total in range(1, 14)]
    assert new == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert [chosen(total, known=[8]) for total in (1, 2, 3, 4, 5, 20)] == [1, 2, 3, 8, 8, 8]
    assert [chosen(total, known=[1, 4]) for total in (1, 2, 3, 4, 5, 9)] == [1, 1, 1, 4, 1, 1]
    # As many as the caller wants at once, and never more.
    assert [chosen(total, 5) for total in (1, 3, 5, 9)] == [1, 3, 5, 5]
    assert chosen(5, 5, [1, 8]) == 5 and chosen(3, 8, [1, 4, 12]) == 4 and chosen(9, 7) == 7
