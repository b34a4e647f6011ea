"""A generation as a pure function: its pictures, gradients, vmap, and what a gradient keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from tests.pipeline.peers import PROMPTS

SETTINGS = {"steps": 3, "guidance_scale": 5.0, "noise": "torch", "height": 16, "width": 24}


@pytest.fixture(scope="module")
def made(model):
    return model.program(PROMPTS[0], seed=7, **SETTINGS)


@pytest.fixture(scope="module")
def jitted(made):
    return jax.jit(made[0])


def test_it_draws_what_generate_draws(model, made, jitted):
    """Another prompt, seed, sampler and scale run the same program."""
    program, params = made
    ours = jitted(params, program.inputs)
    drawn = model.generate(PROMPTS[0], seed=7, output="numpy", **SETTINGS)
    np.testing.assert_allclose(ours, drawn, atol=2e-6)
    other = {**SETTINGS, "steps": 4, "guidance_scale": 2.0, "sampler": "euler_a"}
    again, params = model.program(PROMPTS[1], "blurred", seed=3, **other)
    assert again == program
    drawn = model.generate(PROMPTS[1], "blurred", seed=3, output="numpy", **other)
    np.testing.assert_allclose(jitted(params, again.inputs), drawn, atol=2e-6)
    assert jitted._cache_size() == 1


def test_vmap(made, jitted):
    program, params = made
    latents = np.stack([program.inputs.latents, -program.inputs.latents])
    both = jax.jit(
        jax.vmap(lambda one: program(params, program.inputs._replace(latents=one)))
    )(latents)
    for one, expected in zip(latents, both, strict=True):
        alone = jitted(params, program.inputs._replace(latents=one))
        np.testing.assert_allclose(alone, expected, atol=2e-6)


@pytest.fixture(scope="module")
def slopes(model):
    """Loss, gradients by latents and embeddings, and temporary bytes, without and with remat."""
    made = {}
    for remat in (False, True):
        program, params = model.program(
            PROMPTS[0], seed=7, remat=remat, output="latents", **SETTINGS
        )

        def loss(latents, prompt, program=program, params=params):
            inputs = program.inputs._replace(latents=latents).with_prompt(prompt)
            return jnp.square(program(params, inputs)).mean()

        given = program.inputs.latents, program.inputs.prompt
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile()
        made[remat] = loss, given, compiled(*given), compiled.memory_analysis().temp_size_in_bytes
    return made


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_are_the_differences(slopes, which):
    """The slope in a direction is that of central differences, to 1 %: what float32 leaves."""
    loss, given, (_, gradients), _ = slopes[False]
    loss = jax.jit(loss)
    direction = jax.tree.map(
        lambda leaf: np.random.RandomState(1).randn(*leaf.shape).astype(np.float32), given[which]
    )

    def at(step):
        moved = jax.tree.map(lambda leaf, way: leaf + step * way, given[which], direction)
        return float(loss(*(moved if i == which else leaf for i, leaf in enumerate(given))))

    products = jax.tree.map(lambda slope, way: (slope * way).sum(), gradients[which], direction)
    slope = sum(map(float, jax.tree.leaves(products)))
    step = 1e-2
    assert abs(slope) > 1e-4
    np.testing.assert_allclose((at(step) - at(-step)) / (2 * step), slope, rtol=1e-2)


def test_remat_keeps_less_and_changes_nothing(slopes):
    (_, _, plain, much), (_, _, spared, little) = slopes[False], slopes[True]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), plain, spared)
    assert little < much / 3


def test_what_is_no_argument(model):
    for name in ("progress", "batch_size", "paste"):
        with pytest.raises(sdjax.SdjaxError, match=f"program takes no {name}"):
            model.program("a", **{name: 1})
    with pytest.raises(sdjax.SdjaxError, match="output must be"):
        model.program("a", output="pil")
    with pytest.raises(sdjax.SdjaxError, match="heigth"):
        model.program("a", heigth=64)
