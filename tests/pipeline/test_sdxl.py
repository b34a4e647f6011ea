"""What SDXL and its refiner take beside a prompt, against diffusers' pipelines."""

import diffusers
import jax
import numpy as np
import pytest

import sdjax
from sdjax.weights.names import state_from_params
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close
from tests.pipeline.test_conditions import SIZE, generators, picture


def theirs(pipeline, prompt=PROMPTS[0], **options):
    options = {"num_inference_steps": 8, "guidance_scale": 5.0, "output_type": "np", **options}
    return pipeline(prompt, generator=options.pop("generator", generators(7)), **options).images


def ours(model, prompt=PROMPTS[0], **options):
    options = {"steps": 8, "guidance_scale": 5.0, "seed": 7, "output": "numpy", **options}
    return model.generate(prompt, noise="torch", **options)


def named(options):
    """Our options under diffusers' names."""
    return {name.replace("crop", "crops_coords_top_left"): value for name, value in options.items()}


TOLD = {
    "prompts": {"prompt_2": PROMPTS[1], "negative_prompt": "red", "negative_prompt_2": "blue"},
    "sizes": {"original_size": (70, 50), "crop": (3, 9), "target_size": (40, 90)},
    "negative": {
        "original_size": (70, 50), "crop": (3, 9), "negative_original_size": (5, 6),
        "negative_target_size": (8, 7),
    },
    "negative crop": {
        "negative_original_size": (5, 6), "negative_crop": (30, 1), "negative_target_size": (8, 7),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(base):
    return ours(base, height=24, width=32)


@pytest.mark.parametrize("name", TOLD)
def test_what_sdxl_is_told(base, folders, plain, name):
    options = {"height": 24, "width": 32, **TOLD[name]}
    expected = theirs(peers.load("sdxl", folders("sdxl")), **named(options))
    made = ours(base, **options)
    assert_close(made, expected)
    assert np.abs(made - plain).max() > 1e-3


def test_a_second_negative_prompt_alone_counts(base, plain):
    """diffusers passes over it where no negative prompt means zeros."""
    made = ours(base, height=24, width=32, negative_prompt_2="blue")
    both = ours(base, height=24, width=32, negative_prompt="", negative_prompt_2="blue")
    np.testing.assert_array_equal(made, both)
    assert np.abs(made - plain).max() > 1e-3


def test_second_prompts_of_several_images(base):
    options = {"height": 24, "width": 32, "steps": 3}
    both = ours(base, PROMPTS, prompt_2=PROMPTS[::-1], **options)
    alone = ours(base, PROMPTS[1], prompt_2=PROMPTS[0], **{**options, "seed": 8})
    np.testing.assert_allclose(both[1], alone[0], atol=2e-5)


SCORES = {
    "by itself": {},
    "scores": {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.0},
    "crop": {"crop": (3, 9), "original_size": (70, 50), "negative_prompt": "blue"},
    "negative crop": {"negative_crop": (3, 9), "negative_original_size": (70, 50)},
}


@pytest.mark.parametrize("name", SCORES)
def test_the_refiner_alone(refiner, folders, name):
    options = {"image": picture(), "strength": 0.6, **SCORES[name]}
    expected = theirs(peers.load("refiner", folders("refiner")), **named(options))
    assert_close(ours(refiner, **options), expected)


def test_the_refiner_is_written_and_read_again(refiner, tmp_path):
    refiner.save_pretrained(tmp_path / "folder")
    there = peers.quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder"))
    assert type(there) is diffusers.StableDiffusionXLImg2ImgPipeline
    assert there.config.requires_aesthetics_score and there.text_encoder is None
    options = {"image": picture(), "strength": 0.5}
    assert_close(ours(refiner, **options), theirs(there, **options))
    refiner.save_single_file(tmp_path / "a.safetensors")
    again = sdjax.StableDiffusion.from_single_file(
        tmp_path / "a.safetensors", config=tmp_path / "folder"
    )
    assert again.encoder_parts == ("text_encoder_2",)
    for part, params in refiner.params.items():
        expected, found = state_from_params(params), state_from_params(again.params[part])
        assert expected.keys() == found.keys()
        assert all((expected[k].load() == found[k].load()).all() for k in expected), part
    np.testing.assert_array_equal(ours(again, **options), ours(refiner, **options))


def test_what_is_told_compiles_nothing(base):
    compilations = []
    options = {"height": 16, "width": 24, "steps": 2, "output": "latents"}
    ours(base, **options)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    for name in TOLD:
        ours(base, **options, **TOLD[name])
    assert compilations == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aesthetic_score": 6}, "this model is told no aesthetic score"),
        ({"prompt_2": ["a", "b"]}, "prompt_2 must be one or one a prompt: 1 prompts, 2"),
        ({"crop": 3}, "crop must be two whole numbers, the vertical one first, got 3"),
        ({"crop": (3, -1)}, "crop must be at least 0, got -1"),
        ({"target_size": (0, 5)}, "target_size must be at least 1, got 0"),
        ({"original_size": "12"}, "original_size must be two whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(base, arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        base.generate(PROMPTS[0], **arguments)


def test_the_refiner_is_told_no_target_and_has_one_prompt(refiner):
    with pytest.raises(sdjax.SdjaxError, match="told no target size: leave target_size out"):
        refiner.generate(PROMPTS[0], image=picture(), target_size=SIZE)
    with pytest.raises(sdjax.SdjaxError, match="has one text encoder: leave prompt_2 out"):
        refiner.generate(PROMPTS[0], image=picture(), prompt_2="blue")
