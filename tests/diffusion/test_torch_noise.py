"""NumPy's imitation of torch.randn against torch."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from sdjax import diffusion
from sdjax.diffusion.torch_noise import torch_draws, torch_normal
from sdjax.errors import SdjaxError


@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1, 2**33 + 5])
@pytest.mark.parametrize("shape", [(16,), (17,), (3, 7, 5), (1, 4, 64, 64)])
def test_equals_torch(seed, shape):
    theirs = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_allclose(torch_normal(seed, shape), theirs, atol=5e-7, rtol=0)


def test_too_few_values_are_refused():
    with pytest.raises(SdjaxError, match="at least 16"):
        torch_normal(0, (15,))


@pytest.mark.parametrize("size", [16, 21, 64])
def test_draws_follow_one_another(size):
    generator = torch.Generator().manual_seed(5)
    theirs = np.stack([torch.randn(size, generator=generator).numpy() for _ in range(4)])
    np.testing.assert_allclose(torch_draws(5, [(size,)] * 4), theirs, atol=5e-7, rtol=0)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("EulerAncestralDiscreteScheduler", {}),
        ("DDPMScheduler", {}),
        ("DDIMScheduler", {"eta": 1.0}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("LCMScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
    ],
)
def test_a_seed_gives_the_image_it_gives_in_diffusers(name, keywords):
    """Through the scheduler's own calls of the generators, one an image."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    seeds = (3, 8)
    if name.startswith("DPM"):
        config["algorithm_type"] = "sde-dpmsolver++"
    if name.startswith("DD"):
        config["clip_sample"] = False
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(4)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.cat([torch.randn((1, 2, 3, 4), generator=g) for g in generators])
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = 0.8 * scheduler.scale_model_input(x, t)
        x = scheduler.step(prediction, t, x, generator=generators, **keywords).prev_sample

    table = diffusion.sampler_from_config({**config, "_class_name": name}, 4, **keywords)
    start, noise = diffusion.torch_noise(seeds, table, (3, 4, 2))
    ours = diffusion.sample(lambda x, t: 0.8 * x, table, start, jax.random.key(0), noise=noise)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(ours), -1, 1), x, rtol=0, atol=2e-5 * float(x.abs().max())
    )


def test_without_a_start_the_rows_get_the_first_draws():
    table = diffusion.sampler("euler_a", diffusion.scaled_linear_schedule(), 3)
    start, noise = diffusion.torch_noise([4], table, (3, 4, 2))
    none, moved = diffusion.torch_noise([4], table, (3, 4, 2), start=False)
    first, second = table.noise_rows
    assert none is None and not moved[second + 1 :].any()
    np.testing.assert_array_equal(moved[first], start)
    np.testing.assert_array_equal(moved[second], noise[first])
    # Nothing to draw: no size is too small.
    table = diffusion.sampler("euler", diffusion.scaled_linear_schedule(), 3)
    assert not diffusion.torch_noise([4], table, (1, 1, 4), start=False)[1].any()


def test_samplers_that_draw_otherwise_are_known():
    config = {"_class_name": "DPMSolverSDEScheduler"}
    assert not diffusion.drawn_in_turn(config)
    assert not diffusion.drawn_in_turn({}, "DPM++ SDE Karras")
    assert not diffusion.drawn_in_turn({}, "dpmpp_2s_ancestral")
    assert diffusion.drawn_in_turn(config, "dpmpp_2m_sde")
