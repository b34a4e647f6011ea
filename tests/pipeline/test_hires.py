"""Pictures made small, enlarged and refined in one call: what two calls by hand give."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image

import sdjax
from sdjax.pipeline.hires import enlarged
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close
from tests.pipeline.test_conditions import SIZE, generators, mask, picture

SIZED = {"height": SIZE[0], "width": SIZE[1], "steps": 6, "guidance_scale": 5.0}
LARGE = {"height": 36, "width": 48}


@pytest.fixture(scope="module")
def control(controlnet):
    return controlnet[1]


def test_latents_are_refined_as_by_diffusers(model, folder):
    first = peers.load("sd1", folder)
    second = diffusers.StableDiffusionImg2ImgPipeline(
        **first.components, requires_safety_checker=False
    )
    common = {"num_inference_steps": 6, "guidance_scale": 5.0}
    latents = first(
        PROMPTS[0], height=SIZE[0], width=SIZE[1], output_type="latent",
        generator=generators(7), **common,
    ).images  # fmt: skip
    latents = torch.nn.functional.interpolate(latents, scale_factor=1.5, mode="bilinear")
    expected = peers.quiet(second)(
        PROMPTS[0], image=latents, strength=0.6, output_type="np", generator=generators(7), **common
    ).images
    made = model.generate(
        PROMPTS[0], seed=7, noise="torch", output="numpy", hires=1.5, hires_strength=0.6, **SIZED
    )
    assert made.shape[1:3] == (36, 48)
    assert_close(made, expected)


CASES = {
    "plain": {},
    "other": {"hires_by": "bicubic", "hires_steps": 4},
    "image and mask": {"image": picture(), "mask": mask()},
    "control": {"controls": 1},
    "refiner": {"refiner": 1, "handoff": 0.8},
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_two_calls(model, control, name):
    options = {"seed": 7, "sampler": "euler_a", **SIZED, **CASES[name]}
    if "controls" in options:
        options["controls"] = [control(picture(5), scale=0.8, end=0.7)]
    if "refiner" in options:
        options["refiner"] = model
    by = options.pop("hires_by", "lanczos")
    steps = options.pop("hires_steps", None)
    made = model.generate(
        PROMPTS[0], hires=1.5, hires_by=by, hires_strength=0.6, hires_steps=steps, **options
    )
    (first,) = model.generate(PROMPTS[0], **options)
    first = first.resize((48, 36), Image.Resampling[by.upper()])
    options |= {**LARGE, "image": first, "strength": 0.6, "steps": steps or 6}
    expected = model.generate(PROMPTS[0], **options)
    np.testing.assert_array_equal(np.asarray(made[0]), np.asarray(expected[0]))


@pytest.mark.parametrize(
    ("by", "mode"),
    [("latent", "bilinear"), ("latent-bicubic", "bicubic"), ("latent-nearest", "nearest")],
)
def test_latents_are_enlarged_as_by_torch(by, mode):
    latents = np.float32(np.random.RandomState(0).randn(2, 7, 9, 4))
    way = {} if mode == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()), size=(10, 15), mode=mode, **way
    )
    made = enlarged(latents, (10, 15), by)
    np.testing.assert_allclose(made, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_image_of_a_batch_is_the_image_alone(model):
    options = {**SIZED, "hires": 1.5, "output": "numpy"}
    batch = model.generate(PROMPTS, seed=3, **options)
    alone = model.generate(PROMPTS[1], seed=4, **options)
    np.testing.assert_allclose(batch[1], alone[0], atol=3e-5)


def test_another_strength_compiles_nothing(model):
    compilations, told = [], []
    options = {**SIZED, "hires": 1.5, "output": "latents"}
    model.generate(PROMPTS[0], **options)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    model.generate(PROMPTS[1], **options, hires_strength=0.3, seed=3, hires_by="latent-nearest")
    assert compilations == []
    model.generate(
        PROMPTS[0], **options, hires_strength=0.5, progress=lambda *done: told.append(done)
    )
    assert told[-1] == (9, 9)  # six evaluations, and half of six


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hires": 0.5}, "hires must be at least 1, got 0.5"),
        ({"hires_steps": 3}, "hires_steps is for hires, which is missing"),
        ({"hires": 2, "hires_by": "esrgan"}, "hires_by must be latent, .* or nearest"),
        ({"hires": 2, "hires_strength": 0.01}, "strength 0.01 leaves none of 6 steps"),
        ({"hires": 2, "image": picture(), "mask": mask()}, "hires in latents knows no mask"),
    ],
)
def test_what_does_not_fit_is_refused(model, arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(PROMPTS[0], **SIZED, **arguments)


def test_control_pictures_of_floats_are_refused_before_the_first_pass(model, control):
    shown = np.zeros((*SIZE, 3), np.float32)
    with pytest.raises(sdjax.SdjaxError, match="as floats must have the size of the result"):
        model.generate(PROMPTS[0], **SIZED, hires=1.5, controls=[control(shown)])
