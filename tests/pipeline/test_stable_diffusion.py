"""The pipeline against PyTorch diffusers, and what it promises about batches and compilation."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from rich.console import Console

import sdjax
from sdjax import diffusion
from sdjax.pipeline.compiled import places, progress
from sdjax.weights.folder import read_model_index, write_json
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close, torch_latents


def peer_images(folder, prompts, **options):
    return peers.images(peers.load("sd1", folder), prompts, **options)


def test_guided_ddim_equals_diffusers(folder, model):
    noise = np.random.RandomState(0).randn(2, 8, 8, 4).astype(np.float32)
    theirs = peer_images(
        folder,
        PROMPTS,
        negative_prompt=["", "red"],
        latents=torch_latents(noise),
    )
    ours = model.generate(
        PROMPTS, ["", "red"], steps=20, guidance_scale=5.0, latents=noise, output="numpy"
    )
    assert_close(ours, theirs)


def test_seed_gives_the_image_of_diffusers(folder, model):
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    theirs = peer_images(folder, PROMPTS, generator=generators, height=24, width=32)
    ours = model.generate(
        PROMPTS, steps=20, guidance_scale=5.0, seed=7, height=24, width=32, output="numpy"
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("scheduler", "settings", "eta", "sampler"),
    [
        ("DDPMScheduler", {}, {}, "ddpm"),
        ("EulerAncestralDiscreteScheduler", {}, {}, "euler_a"),
        ("DDIMScheduler", {}, {"eta": 0.7}, "ddim"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}, "dpmpp_2m_sde"),
    ],
)
def test_seed_of_a_stochastic_sampler_gives_the_image_of_diffusers(
    folder, model, scheduler, settings, eta, sampler
):
    pipeline = with_scheduler(folder, scheduler, **settings)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 3)]
    theirs = peers.images(pipeline, PROMPTS, generator=generators, num_inference_steps=6, **eta)
    ours = model.generate(
        PROMPTS, steps=6, guidance_scale=5.0, seed=[7, 3], sampler=sampler, noise="torch",
        output="numpy", **eta,
    )  # fmt: skip
    assert_close(ours, theirs)


def test_seed_with_given_latents_gives_the_image_of_diffusers(folder, model):
    """The generator's first numbers are then the first step's."""
    pipeline = with_scheduler(folder, "EulerAncestralDiscreteScheduler")
    noise = np.random.RandomState(0).randn(1, 8, 8, 4).astype(np.float32)
    theirs = peers.images(
        pipeline, PROMPTS[0], latents=torch_latents(noise), num_inference_steps=4,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    ours = model.generate(
        PROMPTS[0], steps=4, guidance_scale=5.0, seed=5, sampler="euler_a", latents=noise,
        output="numpy",
    )  # fmt: skip
    assert_close(ours, theirs)


def with_scheduler(folder, name, **settings):
    """The peer with another scheduler, of the model's own settings."""
    pipeline = peers.load("sd1", folder)
    scheduler = getattr(diffusers, name)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    return pipeline


def test_unguided_equals_diffusers(folder, model):
    theirs = peer_images(
        folder, PROMPTS[0], guidance_scale=1.0, generator=torch.Generator().manual_seed(3)
    )
    ours = model.generate(PROMPTS[0], steps=20, guidance_scale=1, seed=3, output="numpy")
    assert_close(ours, theirs)


def test_own_guidance_is_kept_and_used_where_none_is_given(model, tmp_path):
    assert model.guidance_scale == 7.5
    once = model.generate(PROMPTS[0], steps=2, guidance_scale=2.5, output="numpy")
    model.save_pretrained(tmp_path / "plain")
    assert "_guidance_scale" not in read_model_index(tmp_path / "plain")
    again = sdjax.StableDiffusion.from_pretrained(tmp_path / "plain")
    again.guidance_scale = 2.5
    again.save_pretrained(tmp_path / "own")
    own = sdjax.StableDiffusion.from_pretrained(tmp_path / "own")
    np.testing.assert_allclose(own.generate(PROMPTS[0], steps=2, output="numpy"), once, atol=1e-5)
    index = read_model_index(tmp_path / "own")
    write_json(tmp_path / "own/model_index.json", index | {"_guidance_scale": "high"})
    with pytest.raises(sdjax.SdjaxError, match="_guidance_scale .* must be a number, got 'high'"):
        sdjax.StableDiffusion.from_pretrained(tmp_path / "own")


@pytest.mark.parametrize("noise", ["torch", "jax"])
def test_image_of_a_batch_is_the_image_alone(model, noise):
    options = {"steps": 5, "sampler": "ddim", "eta": 1.0, "noise": noise, "output": "numpy"}
    batch = model.generate(PROMPTS, seed=10, count=2, **options)
    assert batch.shape == (4, 16, 16, 3) and batch.dtype == np.float32
    assert np.abs(batch[0] - batch[1]).max() > 0.01
    for i in range(4):
        alone = model.generate(PROMPTS[i // 2], seed=10 + i, **options)
        np.testing.assert_allclose(batch[i], alone[0], atol=2e-5)
    chosen = model.generate(PROMPTS[0], seed=[11, 10], count=2, **options)
    np.testing.assert_allclose(chosen, batch[[1, 0]], atol=2e-5)


def test_nothing_recompiles(model):
    """Programs compiled for one request serve every other of the same shapes."""
    model.generate(PROMPTS[0], steps=3)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    model.generate(
        "red", "blue", steps=40, guidance_scale=2.0, guidance_rescale=0.5, seed=99, sampler="ddpm"
    )
    model.generate(PROMPTS[1], steps=7, sampler="ddim", eta=0.5, spacing="trailing")
    model.generate(PROMPTS[1], steps=7, sampler="dpmpp_sde", latents=np.ones((1, 8, 8, 4)))
    model.generate(PROMPTS[1], steps=7, sampler="euler", noise="torch")
    model.generate(PROMPTS[1], sampler="dpmpp_2m", timesteps=[900, 500, 100])
    assert compilations == []
    model.generate(PROMPTS[1], steps=7, height=18, output="latents")
    assert compilations != []


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_progress_counts_every_evaluation_and_changes_nothing(model, monkeypatch, sampler):
    options = {"count": 3, "batch_size": 2, "steps": 4, "sampler": sampler, "output": "latents"}
    plain = model.generate(PROMPTS[0], progress=False, **options)
    monkeypatch.setattr(progress, "STILL", 1e-9)  # a part after each evaluation
    told, compilations = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    shown = model.generate(
        PROMPTS[0], progress=lambda done, total: told.append((done, total)), **options
    )
    assert told == [(done, 8) for done in range(1, 9)]  # two batches of four evaluations
    np.testing.assert_array_equal(shown, plain)
    assert compilations == []


def test_bar_shows_rate_and_is_absent_without_a_terminal(model, monkeypatch, capsys):
    model.generate(PROMPTS[0], steps=3, output="latents")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(stderr=True, force_terminal=True, width=80)
    )
    model.generate(PROMPTS[0], steps=3, output="latents")
    assert "3/3" in (shown := capsys.readouterr().err) and "step" in shown
    model.generate(PROMPTS[0], steps=3, output="latents", progress=False)
    assert capsys.readouterr().err == ""


def test_a_fast_model_is_run_in_few_parts():
    table = diffusion.sampler("heun", diffusion.scaled_linear_schedule(), 15)
    parts, advanced = [], []
    ended = progress.carry_out(
        lambda part, x: parts.append(part.evaluations) or x + 1, table, 0, advanced.append
    )
    assert ended == len(parts) == 2
    assert parts == advanced == [1, table.evaluations - 1]
    assert progress.carry_out(lambda part, x: part is table, table, 0, None)


def test_without_guidance_the_network_sees_each_image_once(model, monkeypatch):
    batches = []
    original = type(model.unet).__call__

    def counted(self, x, *args, **kwargs):
        batches.append(x.shape[0])
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(type(model.unet), "__call__", counted)
    sizes = {"steps": 2, "height": 8, "width": 8, "output": "latents"}

    def seen(**options):
        batches.clear()
        model.generate(PROMPTS[0], **sizes, **options)
        return set(batches)

    assert jax.local_device_count() == 2
    assert seen(guidance_scale=1, count=2) == {1}
    assert seen(guidance_scale=2, count=2) == {2}
    # Alone, a guided image takes both devices, one for each half.
    assert seen(guidance_scale=2, count=1) == {1}
    assert seen(guidance_scale=2, count=3, batch_size=3) == {3}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_image_has_its_place(count, guided):
    place = places.place(count, 1 + guided)
    devices = jax.local_device_count()
    assert place.rows.shape[0] == devices
    evaluations = place.rows.shape[1] * (2 if guided and not place.across else 1)
    assert evaluations == -(-count * (1 + guided) // devices)
    mapped = place.rows[..., None]
    np.testing.assert_array_equal(places.joined(mapped, place, count)[:, 0], range(count))


def test_outputs(model):
    images = model.generate(PROMPTS[0], steps=2)
    assert images[0].size == (16, 16) and images[0].mode == "RGB"
    latents = model.generate(PROMPTS[0], steps=2, output="latents")
    assert latents.shape == (1, 8, 8, 4) and latents.dtype == np.float32


def test_assigned_parameters_are_used(model):
    before, params = model.generate(PROMPTS[0], steps=2, output="latents"), model.params
    model.params = jax.tree.map(lambda leaf: leaf * 0.9, params)
    changed = model.generate(PROMPTS[0], steps=2, output="latents")
    model.params = params
    after = model.generate(PROMPTS[0], steps=2, output="latents")
    assert np.abs(changed - before).max() > 1e-3
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "empty list"),
        ({"prompt": [1]}, "must be text"),
        ({"height": 17}, "height must be a multiple of 2, got 17; the nearest is"),
        ({"width": 0}, "width must be a multiple"),
        ({"count": 0}, "count"),
        ({"seed": [1, 2]}, "seed must be one number or 1"),
        ({"seed": -1}, "a seed must lie"),
        ({"output": "jpeg"}, "pil, numpy or latents"),
        ({"sampler": "eulr"}, "sampler"),
        ({"steps": 0}, "steps"),
        ({"noise": "pink"}, "torch or jax"),
        ({"noise": "torch", "sampler": "dpmpp_sde"}, "promises diffusers' picture"),
        ({"latents": np.zeros((1, 4, 4, 4))}, r"must have shape \(1, 8, 8, 4\)"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts, 2 negative"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"guidance_rescale": float("inf")}, "guidance_rescale must be a finite number, got inf"),
        ({"latents": np.full((1, 8, 8, 4), np.nan)}, "latents must be finite numbers"),
    ],
)
def test_bad_requests_are_refused(model, arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(**{"prompt": PROMPTS[0], **arguments})


@pytest.mark.parametrize("output", ["pil", "latents"])
def test_pictures_that_are_not_finite_are_refused(model, output):
    """One of two: the other one is not spoiled, but nothing says which the caller wanted."""
    latents = np.ones((2, 8, 8, 4), np.float32)
    latents[1] *= 3e38
    message = r"1 of 2 images \(seed 8 first\) came out .*float32"
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(PROMPTS, seed=7, steps=2, latents=latents, output=output)


def test_a_folder_that_is_no_pipeline_is_named(folder, tmp_path):
    with pytest.raises(sdjax.SdjaxError, match="no such model folder"):
        sdjax.StableDiffusion.from_pretrained(tmp_path / "absent")
    with pytest.raises(sdjax.SdjaxError, match="expected a U-Net, an autoencoder"):
        sdjax.StableDiffusion.from_pretrained(folder / "unet")
