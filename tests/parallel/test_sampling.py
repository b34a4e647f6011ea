"""Pictures by a model whose parameters are cut over the devices."""

import warnings

import jax
import numpy as np
import pytest

import sdjax
from sdjax.parallel import Placement
from tests.pipeline import peers

OPTIONS = {"steps": 2, "seed": 3, "output": "numpy", "sampler": "euler_ancestral"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return peers.make("sd1", tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def expected(folder):
    return sdjax.StableDiffusion.from_pretrained(folder).generate("a red apple", **OPTIONS)


def held(params):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("placement", [Placement(fsdp=-1), Placement(tensor=2)])
def test_a_model_cut_over_the_devices_makes_the_same_pictures(folder, expected, placement):
    model = sdjax.StableDiffusion.from_pretrained(folder, placement=placement)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert held(model.params) < (0.6 if placement.fsdp == -1 else 0.9) * whole
    made = model.generate("a red apple", **OPTIONS)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)
    before = jax.tree.map(lambda leaf: leaf.sharding, model.params)
    model.params = jax.tree.map(np.asarray, model.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, model.params) == before
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = model.generate(
            "a red apple", preview=lambda *shown: seen.append(shown[:2]), **OPTIONS
        )
    np.testing.assert_array_equal(again, made)
    assert seen == [(1, 2), (2, 2)]
