"""Parameters that stay on the host between calls."""

import gc

import jax
import numpy as np

import sdjax
from tests.pipeline import peers
from tests.pipeline.test_conditions import picture


def on_devices():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_pictures_are_the_same_and_nothing_stays_on_the_devices(tmp_path):
    folder = peers.make("sd1", tmp_path)
    options = {"image": picture(), "steps": 4, "seed": 3, "output": "numpy"}
    model = sdjax.StableDiffusion.from_pretrained(folder)
    expected = model.generate(peers.PROMPTS, **options)
    del model
    before = on_devices()
    model = sdjax.StableDiffusion.from_pretrained(folder, offload=True)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert on_devices() == before and size > 100_000
    seen = []
    made = model.generate(
        peers.PROMPTS, progress=lambda *_: seen.append(on_devices() - before), **options
    )
    np.testing.assert_array_equal(made, expected)
    unet = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params["unet"]))
    copies = jax.local_device_count()
    assert min(seen) >= unet  # while it is used; the text encoder is gone by then
    assert max(seen) < copies * size
    assert on_devices() - before < 10_000
    model.params = model.params
    assert on_devices() - before < 10_000
    np.testing.assert_array_equal(model.generate(peers.PROMPTS, **options), expected)
