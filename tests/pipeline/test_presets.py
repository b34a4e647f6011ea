"""Models of few steps by their presets, and variations of a picture."""

import inspect

import diffusers
import jax
import numpy as np
import pytest
import torch

import sdjax
from sdjax.cli.sample import sample
from sdjax.pipeline.given.presets import PRESETS
from sdjax.pipeline.plans.draws import varied
from sdjax.pipeline.plans.request import Request
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close
from tests.pipeline.test_conditions import SIZE, generators, picture


@pytest.fixture(scope="module")
def peer(folders):
    return peers.load("sd1", folders("sd1"))


# As the model cards give them: diffusers' scheduler, its settings, and those of the call.
CARDS = {
    "lcm-lora": (diffusers.LCMScheduler, {}, {"num_inference_steps": 4}),
    "turbo": (
        diffusers.EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"},
        {"num_inference_steps": 1},
    ),
    "lightning-1": (
        diffusers.EulerDiscreteScheduler,
        {"timestep_spacing": "trailing", "prediction_type": "sample"}, {"num_inference_steps": 1},
    ),
    "lightning-4": (
        diffusers.EulerDiscreteScheduler, {"timestep_spacing": "trailing"},
        {"num_inference_steps": 4},
    ),
    "hyper-1": (diffusers.TCDScheduler, {}, {"num_inference_steps": 1, "eta": 1.0}),
    "hyper-1-unet": (diffusers.LCMScheduler, {}, {"timesteps": [800], "num_inference_steps": 1}),
    "hyper-2": (
        diffusers.DDIMScheduler, {"timestep_spacing": "trailing"}, {"num_inference_steps": 2},
    ),
    "dmd2-4": (
        diffusers.LCMScheduler, {}, {"timesteps": [999, 749, 499, 249], "num_inference_steps": 4}
    ),
}  # fmt: skip


@pytest.mark.parametrize("preset", CARDS)
def test_a_preset_is_what_the_card_says(model, peer, preset):
    scheduler, settings, options = CARDS[preset]
    plain = {"prediction_type": "epsilon", **settings}
    peer.scheduler = scheduler.from_config(peer.scheduler.config, **plain)
    theirs = peer(
        PROMPTS[0], guidance_scale=0, height=SIZE[0], width=SIZE[1], output_type="np",
        generator=generators(7), **options,
    ).images  # fmt: skip
    ours = model.generate(
        PROMPTS[0], preset=preset, seed=7, noise="torch", output="numpy",
        height=SIZE[0], width=SIZE[1],
    )  # fmt: skip
    assert_close(ours, theirs)


@pytest.mark.parametrize("strength", [None, 0.5])
def test_latent_consistency_model(folders, strength):
    made = {"prompt": PROMPTS[0], "guidance_scale": 8.0, "output_type": "np"}
    made |= {"num_inference_steps": 4, "generator": generators(7)}
    if strength is None:
        kind = diffusers.LatentConsistencyModelPipeline
        options = {"height": SIZE[0], "width": SIZE[1]}
    else:
        kind = diffusers.LatentConsistencyModelImg2ImgPipeline
        options = {"image": picture(), "strength": strength}
    pipeline = peers.quiet(kind.from_pretrained(folders("distilled"), safety_checker=None))
    pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
    theirs = pipeline(**made, **options).images
    ours = sdjax.StableDiffusion.from_pretrained(folders("distilled")).generate(
        PROMPTS[0], preset="lcm", seed=7, noise="torch", output="numpy", **options
    )
    assert_close(ours, theirs)


def test_a_scale_of_zero_is_no_guidance(model):
    """As the cards of distilled models write it, and diffusers takes it."""
    options = {"steps": 2, "height": SIZE[0], "width": SIZE[1], "output": "latents"}
    off, zero = (model.generate(PROMPTS[0], guidance_scale=s, **options) for s in (1, 0))
    np.testing.assert_array_equal(off, zero)


def test_what_is_given_comes_before_the_preset():
    asked = Request("a", preset="lightning-4")
    assert (asked.steps, asked.sampler, asked.guidance_scale) == (4, "euler", 1.0)
    assert asked.options == {"spacing": "trailing"}
    asked = Request("a", preset="dmd2-4", steps=2, guidance_scale=1.5, options={"original_steps": 40})
    assert (asked.steps, asked.guidance_scale) == (2, [1.5])
    assert asked.options == {"original_steps": 40}
    asked = Request("a", preset="hyper-1", sampler="ddim")
    assert (asked.steps, asked.sampler, asked.options) == (1, "ddim", {"eta": 1.0})
    asked = Request("a", preset="hyper-1", sampler="euler", options={"spacing": "linspace"})
    assert (asked.sampler, asked.options) == ("euler", {"spacing": "linspace"})


def test_an_unknown_preset_is_refused_with_the_list():
    with pytest.raises(sdjax.SdjaxError, match="did you mean lightning-4.* there are lcm, lcm-lora"):
        Request("a", preset="lightning_4")


def test_the_command_names_all_presets():
    told = inspect.getdoc(sample).split("preset:")[1].split("steps: Sampling")[0]
    for preset in PRESETS:
        first, _, number = preset.partition("-")
        assert first in told and (preset in told or f"-{number}" in told), preset


def slerp(strength, low, high):
    """The published formula, on PyTorch's [C, h, w], in float64."""
    low, high = (torch.from_numpy(x.astype(np.float64).transpose(2, 0, 1)) for x in (low, high))
    cosine = ((low / low.norm(dim=1, keepdim=True)) * (high / high.norm(dim=1, keepdim=True))).sum(1)
    angle = torch.acos(cosine)[:, None]
    shares = torch.sin((1 - strength) * angle), torch.sin(strength * angle)
    made = (shares[0] * low + shares[1] * high) / torch.sin(angle)
    return made.numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 1.0])
def test_noise_of_a_variation(strength):
    shape = (2, 12, 16, 4)
    noise = np.float32(np.random.RandomState(0).randn(*shape))
    seeds = np.array([3, 4], np.uint64)
    made = varied(noise, seeds, strength, "torch", shape[1:])
    assert made.dtype == np.float32
    for i, seed in enumerate((3, 4)):
        other = torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(seed))
        expected = slerp(strength, noise[i], other.numpy().transpose(1, 2, 0))
        np.testing.assert_allclose(made[i], expected, atol=2e-6)
    # A seed's variation towards itself is itself, not a division by nothing.
    (own,) = varied(made[:1], seeds[:1], 1.0, "torch", shape[1:])
    again = varied(own[None], seeds[:1], 0.5, "torch", shape[1:])[0]
    np.testing.assert_allclose(again, own, atol=1e-6)


@pytest.mark.parametrize("noise", ["torch", "jax"])
def test_the_ends_of_a_variation_are_the_pictures_of_both_seeds(model, noise):
    options = {"steps": 3, "height": SIZE[0], "width": SIZE[1], "output": "numpy", "noise": noise}
    first, second = (model.generate(PROMPTS[0], seed=seed, **options)[0] for seed in (7, 20))
    for strength, expected in ((0.0, first), (1.0, second)):
        made = model.generate(
            PROMPTS[0], variation_seed=20, variation_strength=strength, **options, seed=7
        )
        np.testing.assert_array_equal(made[0], expected)
    between = model.generate(
        PROMPTS[0], seed=7, count=2, variation_seed=20, variation_strength=0.3, **options
    )
    assert model.seeds == [7, 7]
    assert 0.01 < np.abs(between[0] - first).mean() < np.abs(second - first).mean()
    alone = model.generate(
        PROMPTS[0], seed=7, variation_seed=21, variation_strength=0.3, **options
    )
    np.testing.assert_allclose(between[1], alone[0], atol=2e-5)


def test_presets_and_variations_compile_nothing(model):
    compilations = []
    options = {"height": SIZE[0], "width": SIZE[1], "output": "latents"}
    model.generate(PROMPTS[0], preset="turbo", **options)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    for preset in ("lightning-4", "hyper-1", "dmd2-4"):
        model.generate(PROMPTS[0], preset=preset, **options)
        model.generate(
            PROMPTS[0], preset=preset, variation_seed=3, variation_strength=0.3, **options
        )
    assert compilations == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variation_seed": 3}, "variation_seed goes with variation_strength: give both"),
        ({"variation_strength": 0.3}, "variation_strength goes with variation_seed: give both"),
        ({"variation_seed": 3, "variation_strength": 2}, "variation_strength must lie in 0 … 1"),
        ({"variation_seed": [3, 4], "variation_strength": 0.3}, "variation_seed must be one number"),
    ],
)
def test_variations_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        Request("a", **arguments)
