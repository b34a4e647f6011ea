"""Evaluations that share the U-Net's deep features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax import diffusion

OPTIONS = {"steps": 5, "guidance_scale": 3.0, "output": "latents", "height": 16, "width": 16}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))


def made(model, prompts, **options):
    return model.generate(prompts, **{"progress": False, **OPTIONS, **options})


def by_hand(model, every, steps):
    """Latents of "red" by DDIM, a program for whole evaluations and one for the others in turn."""
    program, params = model.program(
        "red", seed=3, sampler="ddim", **{**OPTIONS, "steps": steps})
    inputs = program.inputs
    context = inputs.prompt.context[0, :, 0]

    def evaluated(whole):
        def denoise(x, t, deep):
            given = {"params": params["unet"]}, jnp.repeat(x, 2, 0), t, context
            own = {"keeps_deep": True} if whole else {"deep": deep[0]}
            found = model.unet.apply(*given, **own)
            found, left = found if whole else (found, deep[0])
            return found[:1] + 3.0 * (found[1:] - found[:1]), left[None]

        return jax.jit(lambda table, underway: diffusion.sample(denoise, table, underway))

    table = jax.tree.map(lambda leaf: leaf[0], inputs.settings.table)
    start = diffusion.begin(table, inputs.latents, jnp.zeros((1, 2, 8, 8, 16)))
    whole, shallow = evaluated(True), evaluated(False)
    for i in range(steps):
        start = (shallow if i % every else whole)(table.part(i, i + 1), start)
    return start.x


def test_every_so_many_evaluations_are_whole(model):
    found = made(model, "red", seed=3, sampler="ddim", reuse_every=2)
    np.testing.assert_allclose(found, by_hand(model, 2, 5), atol=2e-5)
    plain = made(model, "red", seed=3, sampler="ddim")
    np.testing.assert_allclose(made(model, "red", seed=3, sampler="ddim", reuse_every=1), plain,
                               atol=2e-5)
    assert np.abs(found - plain).max() > 1e-3


def test_images_of_a_batch_are_alone_and_nothing_is_compiled_anew(model):
    """Also where each has a strength, and so whole evaluations, of its own."""
    options = {"image": [PICTURE, PICTURE], "strength": [1.0, 0.5], "steps": 6, "seed": [4, 9]}
    both = made(model, ["red", "blue"], reuse_every=3, **options)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None)
    other = made(model, ["red", "blue"], reuse_every=2, **options)
    assert compilations == [] and np.abs(both - other).max() > 1e-4
    for i, prompt in enumerate(("red", "blue")):
        alone = made(model, prompt, reuse_every=3, image=PICTURE, steps=6,
                     strength=options["strength"][i], seed=options["seed"][i])
        np.testing.assert_allclose(both[i:i + 1], alone, atol=2e-5)


def test_parts_of_a_table_go_on_with_the_same_features(model):
    """As where somebody is told of the progress."""
    told = []
    whole = made(model, "red", reuse_every=3, seed=3)
    parts = made(model, "red", reuse_every=3, seed=3, progress=lambda *done: told.append(done))
    np.testing.assert_allclose(parts, whole, atol=2e-5)
    assert told[-1] == (5, 5)


def test_a_program_is_the_same(model):
    program, params = model.program("red", seed=3, reuse_every=3, **OPTIONS)
    np.testing.assert_allclose(
        jax.jit(program)(params, program.inputs), made(model, "red", seed=3, reuse_every=3),
        atol=2e-5)


@pytest.mark.parametrize(("options", "words"), [
    ({"reuse_every": 0}, "reuse_every must be at least 1, got 0"),
    ({"reuse_every": 2, "windows": 8}, "reuse_every goes without windows and clips"),
])
def test_what_does_not_go_is_told(model, options, words):
    with pytest.raises(sdjax.SdjaxError, match=words):
        made(model, "red", **options)
