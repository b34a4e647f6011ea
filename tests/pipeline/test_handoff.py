"""One model begins a picture and another ends it, against diffusers' two pipelines."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest

import sdjax
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close
from tests.pipeline.test_conditions import SCHEDULERS, SIZE, generators, mask, picture

SIZED = {"height": SIZE[0], "width": SIZE[1]}


def ours(model, prompt=PROMPTS[0], **options):
    options = {"steps": 10, "guidance_scale": 5.0, "seed": 7, "output": "numpy", **options}
    return model.generate(prompt, **options)


CASES = {
    "ddim": ("ddim", 0.7, {}),
    "euler": ("euler", 0.8, {}),
    "euler_a": ("euler_a", 0.8, {}),
    "dpmpp_2m": ("dpmpp_2m", 0.7, {}),
    "told": ("ddim", 0.8, {"negative_prompt": "blue", "original_size": (70, 50), "crop": (3, 9)}),
    "image": ("euler_a", 0.8, {"strength": 0.7}),
}


@pytest.mark.parametrize("name", CASES)
def test_base_and_refiner(base, refiner, folders, name):
    sampler, fraction, options = CASES[name]
    first, second = peers.load("sdxl", folders("sdxl")), peers.load("refiner", folders("refiner"))
    start = dict(SIZED)
    if name == "image":
        kind = diffusers.StableDiffusionXLImg2ImgPipeline
        first = peers.quiet(kind(**first.components, add_watermarker=False))
        start = {"image": picture()}
    for pipeline in (first, second):
        pipeline.scheduler = SCHEDULERS[sampler].from_config(pipeline.scheduler.config)
    (generator,) = generators(7)
    common = {"num_inference_steps": 10, "guidance_scale": 5.0, "generator": [generator]}
    theirs = {k.replace("crop", "crops_coords_top_left"): v for k, v in options.items()}
    latents = first(
        PROMPTS[0], denoising_end=fraction, output_type="latent", **common, **start, **theirs
    ).images
    theirs.pop("strength", None)
    expected = second(
        PROMPTS[0], image=latents, denoising_start=fraction, output_type="np", **common, **theirs
    ).images
    made = ours(
        base, refiner=refiner, handoff=fraction, sampler=sampler, noise="torch", **start, **options
    )
    assert_close(made, expected)
    assert np.abs(made - ours(base, sampler=sampler, **start, **options)).max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpm2", "euler_a"])
def test_a_model_that_goes_on_from_itself_makes_its_own_picture(base, sampler):
    """At whole steps, whatever the scale of a sampler, and with its noise."""
    options = {"image": picture(), "mask": mask(), "sampler": sampler, "steps": 6}
    whole = ours(base, **options)
    np.testing.assert_allclose(ours(base, refiner=base, handoff=0.5, **options), whole, atol=3e-5)


def test_noise_of_the_refiner_is_not_that_of_the_base(base):
    """With JAX's generator each leg folds a key of its own."""
    options = {**SIZED, "sampler": "euler_a", "noise": "jax", "steps": 6}
    once, twice = (ours(base, refiner=base, handoff=0.5, **options) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert np.abs(once - ours(base, **options)).max() > 1e-3


def test_image_of_a_batch_is_the_image_alone(base, refiner):
    options = {**SIZED, "refiner": refiner, "sampler": "euler_a", "steps": 4}
    batch = ours(base, PROMPTS, **options)
    alone = ours(base, PROMPTS[1], **{**options, "seed": 8})
    np.testing.assert_allclose(batch[1], alone[0], atol=2e-5)


def test_another_handoff_compiles_nothing(base, refiner):
    compilations, told = [], []
    options = {**SIZED, "output": "latents", "refiner": refiner, "progress": False}
    ours(base, **options)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    ours(base, **options, handoff=0.4, aesthetic_score=7, seed=9)
    assert compilations == []
    ours(base, **{**options, "progress": lambda *done: told.append(done)})
    assert told[-1] == (10, 10)  # evaluations of both


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"handoff": 1}, "handoff 1 leaves the refiner none of the steps"),
        ({"handoff": 0.0}, "the first step is at timestep 901, where the refiner goes on"),
        ({"image": picture(), "strength": 0.1}, "the first step is at timestep 1, where"),
        ({"handoff": 1.5}, "handoff must lie in 0 … 1, got 1.5"),
        ({"refiner": "refiner"}, "refiner must be a StableDiffusion, which from_pretrained reads"),
        ({"refiner": None, "handoff": 0.8}, "handoff is where a refiner goes on"),
        ({"target_size": (0, 3)}, "target_size must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(base, refiner, arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        ours(base, **{"refiner": refiner, **SIZED, **arguments})


def test_models_that_do_not_go_together_are_refused(base, refiner, folders):
    other = sdjax.StableDiffusion.from_pretrained(folders("refiner"))
    other.vae = dataclasses.replace(
        other.vae, config=dataclasses.replace(other.vae.config, scaling_factor=0.5)
    )
    with pytest.raises(sdjax.SdjaxError, match="scaling_factor is 0.5, expected"):
        ours(base, refiner=other)
    other = sdjax.StableDiffusion.from_pretrained(folders("refiner"))
    other.scheduler_config["timestep_spacing"] = "trailing"
    with pytest.raises(sdjax.SdjaxError, match="give both the same sampler"):
        ours(base, refiner=other)
    plain = sdjax.StableDiffusion.from_pretrained(folders("sd1"))
    with pytest.raises(sdjax.SdjaxError, match="models of the kind of SDXL are told aesthetic"):
        ours(plain, refiner=plain, aesthetic_score=7)
