"""Every scheduler class against the installed diffusers, over settings drawn by a seed.

Both run in float64 from the same float32 tables, so that a wrong formula is not hidden by rounding;
`test_upstream` compares in float32.
"""

import importlib
import inspect
import random
import sys
import types
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax import diffusion
from sdjax.diffusion.samplers import training_signal

SHAPE = (2, 3, 4)
RANDOM = np.random.RandomState(0)
START, NOISE = RANDOM.randn(*SHAPE), RANDOM.randn(64, *SHAPE)
SETTINGS = 14  # a class

SCHEDULES = (
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
)
PREDICTIONS = ({"prediction_type": "epsilon"}, {"prediction_type": "v_prediction"})
ANY_PREDICTION = (*PREDICTIONS, {"prediction_type": "sample"})
SPACINGS = tuple(
    {"timestep_spacing": spacing, "steps_offset": offset}
    for spacing in ("leading", "trailing", "linspace")
    for offset in (0, 1)
)
SIGMAS = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
FINAL = ({"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"})
CLIP = ({"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 1.3})
THRESHOLD = (
    {},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
)
LAST_ALPHA = ({"set_alpha_to_one": True}, {"set_alpha_to_one": False})
ORDERS = tuple({"solver_order": order} for order in (1, 2, 3))
LOWER = ({"lower_order_final": True}, {"lower_order_final": False})
KINDS = ({"solver_type": "midpoint"}, {"solver_type": "heun"})
EDM = tuple(
    {"sigma_data": d, "sigma_schedule": s} for d in (0.5, 1) for s in ("karras", "exponential")
)
DATA, NOISY = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
TO_ABOVE_ZERO = (
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {**DATA, "final_sigmas_type": "sigma_min"},
    {**DATA, "final_sigmas_type": "zero"},
    {**NOISY, "final_sigmas_type": "zero"},
)

# What may be combined, for each class (what diffusers itself refuses or turns to NaN is left out),
# and what a step may be given.
CLASSES = {
    "DDPMScheduler": (
        SCHEDULES, ANY_PREDICTION, SPACINGS, CLIP, THRESHOLD,
        ({"variance_type": "fixed_small"}, {"variance_type": "fixed_large"}),
    ),
    "DDIMScheduler": (SCHEDULES, ANY_PREDICTION, SPACINGS, CLIP, THRESHOLD, LAST_ALPHA),
    "DDIMInverseScheduler": (SCHEDULES, PREDICTIONS, SPACINGS[:4], CLIP, LAST_ALPHA),
    "PNDMScheduler": (
        SCHEDULES, PREDICTIONS, SPACINGS, LAST_ALPHA,
        ({"skip_prk_steps": True}, {"skip_prk_steps": False}),
    ),
    "EulerDiscreteScheduler": (
        SCHEDULES, ANY_PREDICTION, SPACINGS, SIGMAS, FINAL,
        ({}, {"interpolation_type": "log_linear"}, {"timestep_type": "continuous"}),
    ),
    "EulerAncestralDiscreteScheduler": (SCHEDULES, PREDICTIONS, SPACINGS),
    "HeunDiscreteScheduler": (SCHEDULES, ANY_PREDICTION, SPACINGS, SIGMAS, CLIP),
    "LMSDiscreteScheduler": (SCHEDULES, ANY_PREDICTION, SPACINGS, SIGMAS),
    "KDPM2DiscreteScheduler": (SCHEDULES, PREDICTIONS, SPACINGS, SIGMAS),
    "KDPM2AncestralDiscreteScheduler": (SCHEDULES[1:], PREDICTIONS, SPACINGS, SIGMAS),
    "DPMSolverMultistepScheduler": (
        SCHEDULES, ANY_PREDICTION, SPACINGS, (*SIGMAS, {"use_lu_lambdas": True}), TO_ABOVE_ZERO,
        ORDERS, KINDS, LOWER, THRESHOLD, ({"euler_at_final": True}, {}),
    ),
    "DPMSolverMultistepInverseScheduler": (
        SCHEDULES, ANY_PREDICTION, SPACINGS, SIGMAS, ORDERS[:2], LOWER,
    ),
    "DPMSolverSinglestepScheduler": (
        SCHEDULES, ANY_PREDICTION, SIGMAS, TO_ABOVE_ZERO, ORDERS, KINDS[:1], LOWER[:1], THRESHOLD,
    ),
    "UniPCMultistepScheduler": (
        SCHEDULES, ANY_PREDICTION, SPACINGS, ORDERS,
        (
            *({**sigmas, "final_sigmas_type": "zero"} for sigmas in SIGMAS),
            {"final_sigmas_type": "sigma_min", "predict_x0": False, "solver_type": "bh1"},
            {"final_sigmas_type": "sigma_min", **LOWER[1], "disable_corrector": [0, 2]},
        ),
        ({}, {"sigma_min": 0.05, "sigma_max": 10.0}), THRESHOLD,
    ),
    "DEISMultistepScheduler": (
        SCHEDULES, ANY_PREDICTION, SPACINGS, SIGMAS, ORDERS, LOWER, THRESHOLD,
    ),
    "LCMScheduler": (SCHEDULES, ANY_PREDICTION, CLIP, ({}, {"timestep_scaling": 1.0})),
    "TCDScheduler": (SCHEDULES, ANY_PREDICTION, ({}, {"original_inference_steps": 100})),
    "UnCLIPScheduler": (
        ({"prediction_type": "epsilon"}, {"prediction_type": "sample"}),
        (*CLIP, {"clip_sample_range": 5.0}),
    ),
    "DPMSolverSDEScheduler": (SCHEDULES, PREDICTIONS, SPACINGS, SIGMAS),
    "CMStochasticIterativeScheduler": (
        ({}, {"clip_denoised": False}), ({}, {"s_noise": 0.9}),
        ({}, {"sigma_max": 40.0, "num_train_timesteps": 60}),
    ),
    "IPNDMScheduler": (({},),),
    "EDMEulerScheduler": (EDM, PREDICTIONS, FINAL, ({}, {"rho": 5.0})),
    "EDMDPMSolverMultistepScheduler": (
        EDM, PREDICTIONS, ORDERS[:2], KINDS, LOWER, TO_ABOVE_ZERO[1:],
    ),
}  # fmt: skip
STEP = {
    "DDIMScheduler": ({"eta": 0.0}, {"eta": 0.6}, {"eta": 1.0}),
    "TCDScheduler": ({"eta": 0.0}, {"eta": 0.3}),
}
# The lower levels of the ancestral steps are computed in float32, where they cancel.
TOLERANCE = {"KDPM2AncestralDiscreteScheduler": 1e-5}


def network(x, t, library):
    return 0.6 * library.sin(1.5 * x) + (0.3 + 0.2 * library.cos(t / 300.0)) * x


def theirs(name, config, spaced, keywords):
    """The scheduler's sample, with its tables cast to float64. spaced: for `set_timesteps`."""
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(**spaced)
    for table in ("sigmas", "alphas_cumprod", "alphas", "betas", "final_alpha_cumprod",
                  "sigmas_interpol", "sigmas_up", "sigmas_down"):  # fmt: skip
        if isinstance(getattr(scheduler, table, None), torch.Tensor):
            setattr(scheduler, table, getattr(scheduler, table).double())
    x, noise = torch.tensor(START) * float(scheduler.init_noise_sigma), iter(NOISE)
    module = inspect.getmodule(type(scheduler))

    def draw(*_, **__):
        return torch.tensor(next(noise))

    with (
        mock.patch.object(module, "randn_tensor", draw, create=True),
        mock.patch.object(
            module, "BrownianTreeNoiseSampler", lambda *_, **__: draw, create=True
        ),
        mock.patch.object(torch, "float32", torch.float64),
    ):
        for i, t in enumerate(scheduler.timesteps):
            prediction = network(scheduler.scale_model_input(x, t), t, torch)
            if name == "UnCLIPScheduler":
                following = scheduler.timesteps[i + 1 :]
                keywords = {"prev_timestep": following[0] if len(following) else None}
            x = scheduler.step(prediction, t, x, **keywords).prev_sample
    return x.numpy()


@jax.jit
def _run(table, x, noise):
    def denoise(x, t):
        return network(x, t, jnp)

    return diffusion.sample(denoise, table, x, jax.random.key(0), noise=noise)


def ours(name, config, spaced, keywords):
    options = dict(spaced)
    if name == "DEISMultistepScheduler":
        options["float32_weights"] = False
    table = diffusion.sampler_from_config(
        {**config, "_class_name": name}, options.pop("num_inference_steps", None),
        dtype=np.float64, **options, **keywords,
    )  # fmt: skip
    noise = np.zeros((len(table.rows.kind), *SHAPE))
    noise[table.noise_rows] = NOISE[: len(table.noise_rows)]
    return np.asarray(_run(table, START, noise))


def assert_same(name, config, spaced, keywords=None):
    keywords = keywords or {}
    assert_equals(theirs(name, config, spaced, keywords), name, config, spaced, keywords)


def assert_equals(expected, name, config, spaced, keywords):
    with jax.enable_x64(True):
        got = ours(name, config, spaced, keywords)
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=TOLERANCE.get(name, 5e-6) * np.abs(expected).max(),
        err_msg=f"{config} {spaced} {keywords}",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quiet_diffusers():
    diffusers.utils.logging.set_verbosity_error()


@pytest.fixture
def without_torchsde(monkeypatch):
    """The class that draws a Brownian path can be imported; the tests give it their own noise."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", module.DPMSolverSDEScheduler)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASSES)
def test_scheduler(name, without_torchsde):
    draw = random.Random(name)
    few, compared = name in ("LCMScheduler", "TCDScheduler"), 0
    counts = (1, 2, 3, 8) if few else (1, 2, 3, 5, 10, 20, 31)
    if name.startswith("EDM"):  # where diffusers takes a single step from the lowest level
        counts = counts[1:]
    for _ in range(SETTINGS):
        config = {}
        for choices in CLASSES[name]:
            config |= draw.choice(choices)
        if "beta_schedule" in config:
            config["num_train_timesteps"] = draw.choice((1000, 1000, 250))
        keywords = draw.choice(STEP.get(name, ({},)))
        spaced = {"num_inference_steps": draw.choice(counts)}
        try:
            expected = theirs(name, config, spaced, keywords)
        except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError):
            continue  # some classes fail with few steps, or timesteps that repeat
        if np.isfinite(expected).all() and expected.any():
            assert_equals(expected, name, config, spaced, keywords)
            compared += 1
    assert compared > SETTINGS / 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["DDPMParallelScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler",
     "TCDScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"],
)  # fmt: skip
def test_zero_terminal_snr(name):
    few = name in ("LCMScheduler", "TCDScheduler")
    extra = {} if few else {"timestep_spacing": "trailing"}
    for schedule in SCHEDULES:
        config = {**schedule, **PREDICTIONS[1], **extra, "rescale_betas_zero_snr": True}
        for steps in (2, 6) if few else (1, 6, 25):
            assert_same(name, config, {"num_inference_steps": steps})
        if name.startswith("DPM"):  # the levels of the linear schedule fall at its end
            for sigmas in ("use_karras_sigmas", "use_lu_lambdas"):
                assert_same(name, {**config, sigmas: True}, {"num_inference_steps": 6})


@pytest.mark.parametrize("count", [60, 250, 1000, 2000])
def test_schedules_are_equal_to_the_last_bit(count):
    for schedule in (*SCHEDULES, {"beta_schedule": "squaredcos_cap_v2"}):
        config = {**schedule, "num_train_timesteps": count}
        ours = diffusion.schedule_from_config({**config, "_class_name": "DDPMScheduler"})
        theirs = diffusers.DDPMScheduler(**config)
        np.testing.assert_array_equal(ours.betas, theirs.betas)
        np.testing.assert_array_equal(training_signal(ours), theirs.alphas_cumprod)


@pytest.mark.parametrize(
    ("name", "count", "steps"),
    [
        ("DPMSolverMultistepScheduler", 250, 3),
        ("DPMSolverSinglestepScheduler", 2000, 9),
        ("UniPCMultistepScheduler", 250, 7),
        ("DEISMultistepScheduler", 250, 7),
    ],
)
def test_timesteps_that_are_cut_off_are_the_same(name, count, steps):
    """σ of the first is the last of the schedule: a bit less of it is another timestep."""
    config = {**SCHEDULES[1], "use_exponential_sigmas": True, "num_train_timesteps": count}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    table = diffusion.sampler_from_config({**config, "_class_name": name}, steps)
    np.testing.assert_array_equal(table.timesteps, scheduler.timesteps)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["DDPMScheduler", "LCMScheduler", "TCDScheduler", "EulerDiscreteScheduler",
     "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"],
)  # fmt: skip
def test_given_timesteps(name):
    assert_same(name, SCHEDULES[1], {"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]})


@pytest.mark.filterwarnings("ignore")
def test_given_sigmas():
    assert_same("EulerDiscreteScheduler", SCHEDULES[1], {"sigmas": [14.6, 6.5, 2.7, 1.4, 0.4, 0.0]})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverMultistepScheduler", {**SIGMAS[1], "lambda_min_clipped": -3.0}),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1, **SPACINGS[0]}),
        ("DPMSolverMultistepScheduler",
         {"beta_schedule": "squaredcos_cap_v2", "use_lu_lambdas": True}),
        ("UniPCMultistepScheduler", {"predict_x0": False, **FINAL[1], **THRESHOLD[1]}),
        ("UniPCMultistepScheduler", {"predict_x0": False, **SIGMAS[3], **FINAL[1],
                                     "sigma_min": 0.1, "sigma_max": 9.0}),
        ("KDPM2AncestralDiscreteScheduler", {**SCHEDULES[1], **SIGMAS[2]}),
        ("DDIMScheduler", {"trained_betas": [0.01 + i / 1e4 for i in range(300)],
                           "num_train_timesteps": 300}),
    ],
)  # fmt: skip
def test_rare_settings(name, config):
    assert_same(name, {"timestep_spacing": "trailing", **config}, {"num_inference_steps": 30})


def _ancestral(s, goal):
    up = min(goal, (goal**2 * (s**2 - goal**2) / s**2) ** 0.5)
    return (goal**2 - up**2) ** 0.5, up


def _levels(table):
    """σ of the steps, from the input scales 1/√(1 + σ²) of their first evaluations."""
    scales = np.asarray(table.rows.input_scale, np.float64)[np.asarray(table.rows.kind) > 0]
    return np.sqrt(1 / scales**2 - 1)


def _denoised(table, x, row):
    """x_0 at a row of the table, from an ε network."""
    level = _levels(table)[row]
    return x - level * network(x / np.hypot(1, level), float(table.rows.timestep[row]), np)


def test_dpmpp_sde_is_k_diffusions():
    """The published loop, written out; its diffusers class wants torchsde."""
    with jax.enable_x64(True):
        table = diffusion.sampler(
            "dpmpp_sde", diffusion.scaled_linear_schedule(), 5, sigmas="karras", dtype=np.float64
        )
        got = _run(table, START, np.pad(NOISE[:9], [(0, 55)] + [(0, 0)] * 3))
    levels = np.append(_levels(table)[::2], 0.0)
    x = START * levels[0]
    for i in range(4):
        s, goal = levels[i : i + 2]
        middle = np.exp((np.log(s) + np.log(goal)) / 2)
        down, up = _ancestral(s, middle)
        first = _denoised(table, x, 2 * i)
        inner = down / s * x - np.expm1(np.log(down) - np.log(s)) * first + up * NOISE[2 * i]
        second = _denoised(table, inner, 2 * i + 1)
        down, up = _ancestral(s, goal)
        x = down / s * x - np.expm1(np.log(down) - np.log(s)) * second + up * NOISE[2 * i + 1]
    np.testing.assert_allclose(got, _denoised(table, x, 8), atol=1e-6)


@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_edm_heun_is_algorithm_2(churn):
    """Of Karras et al. 2022, written out; it starts with the noise that diffusers' classes do."""
    steps, high, low, rho, d = 6, 80.0, 0.002, 7.0, 0.5
    with jax.enable_x64(True):
        table = diffusion.sampler(
            "edm_heun", None, steps, churn=churn, churn_min=0.05, churn_max=50.0,
            churn_noise=1.003, dtype=np.float64,
        )  # fmt: skip
        noise = np.zeros((64, *SHAPE))
        noise[table.noise_rows] = NOISE[: len(table.noise_rows)]
        got = _run(table, START, noise)
    levels = (high ** (1 / rho) + np.arange(steps) / (steps - 1)
              * (low ** (1 / rho) - high ** (1 / rho))) ** rho  # fmt: skip
    levels, x = np.append(levels, 0.0), START * np.hypot(high, 1)

    def slope(x, s):
        size = np.hypot(s, d)
        told = network(x / size, 0.25 * np.log(s), np)
        return (x - d**2 / size**2 * x - s * d / size * told) / s

    draws = iter(NOISE)
    for s, goal in zip(levels[:-1], levels[1:], strict=True):
        gamma = min(churn / steps, 2**0.5 - 1) if churn and 0.05 <= s <= 50 else 0.0
        up = s * (1 + gamma)
        if gamma:
            x = x + np.sqrt(up**2 - s**2) * 1.003 * next(draws)
        first = slope(x, up)
        end = x + (goal - up) * first
        x = end if goal == 0 else x + (goal - up) * (first + slope(end, goal)) / 2
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_an_ancestral_sampler_without_noise_is_the_plain_one():
    schedule = diffusion.scaled_linear_schedule()
    for name, plain in (("euler_a", "euler"), ("dpm2_a", "dpm2")):
        table, expected = (
            diffusion.sampler(which, schedule, 5, **options).rows
            for which, options in ((name, {"eta": 0.0}), (plain, {}))
        )
        for a, b in zip(jax.tree.leaves(table), jax.tree.leaves(expected), strict=True):
            if a is not table.interval:
                np.testing.assert_array_equal(a, b)


def test_steps_keywords_by_other_names():
    """`use_clipped_model_output` of DDIM, and of LCM the strength of an image to image run."""
    config = {**SCHEDULES[1], **CLIP[1]}
    expected = theirs("DDIMScheduler", config, {"num_inference_steps": 7},
                      {"use_clipped_model_output": True})  # fmt: skip
    with jax.enable_x64(True):
        got = ours("DDIMScheduler", config, {"num_inference_steps": 7}, {"reuse_x_0": True})
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(3, original_inference_steps=40, strength=0.6)
    table = diffusion.sampler_from_config(
        {"_class_name": "LCMScheduler"}, 3, original_steps=40, strength=0.6
    )
    np.testing.assert_array_equal(table.timesteps, scheduler.timesteps)


def test_dpmpp_2s_a_is_k_diffusions():
    with jax.enable_x64(True):
        table = diffusion.sampler(
            "dpmpp_2s_a", diffusion.scaled_linear_schedule(), 5, sigmas="karras", dtype=np.float64
        )
        noise = np.zeros((64, *SHAPE))
        noise[table.noise_rows] = NOISE[:4]
        got = _run(table, START, noise)
    levels = np.append(_levels(table)[::2], 0.0)
    x = START * levels[0]
    for i in range(4):
        s, goal = levels[i : i + 2]
        down, up = _ancestral(s, goal)
        h = np.log(s) - np.log(down)
        first = _denoised(table, x, 2 * i)
        inner = np.exp(-h / 2) * x - np.expm1(-h / 2) * first
        x = np.exp(-h) * x - np.expm1(-h) * _denoised(table, inner, 2 * i + 1) + up * NOISE[i]
    np.testing.assert_allclose(got, _denoised(table, x, 8), atol=1e-6)


def test_third_order_sde_is_k_diffusions():
    """DPM++ 3M SDE as published; diffusers' differs in one constant."""
    schedule = diffusion.scaled_linear_schedule()
    with jax.enable_x64(True):
        table = diffusion.sampler("dpmpp_3m_sde", schedule, 20, dtype=np.float64)
        noise = np.zeros((64, *SHAPE))
        noise[table.noise_rows] = NOISE[: len(table.noise_rows)]
        got = _run(table, START, noise)
    # In the scale x_0 + σ·ε; σ from x_0 = (x − s·ε)/α.
    s = -np.asarray(table.rows.x_0)[:20, 2]
    levels = np.append(s / np.sqrt(1 - s**2), 0.0)
    x, last = START * np.hypot(1, levels[0]), []
    for i in range(20):
        now, goal = levels[i], levels[i + 1]
        t = float(table.rows.timestep[i])
        d = x - now * network(x / np.hypot(1, now), t, np)
        if goal == 0:
            x = d
            break
        h = np.log(now / goal)
        eta_h = 2 * h
        x = np.exp(-eta_h) * x - np.expm1(-eta_h) * d
        phi_2 = np.expm1(-eta_h) / eta_h + 1
        if len(last) > 1:
            (d_1, h_1), (d_2, h_2) = last[-1], last[-2]
            r_0, r_1 = h_1 / h, h_2 / h
            one, two = (d - d_1) / r_0, (d_1 - d_2) / r_1
            x = x + phi_2 * (one + (one - two) * r_0 / (r_0 + r_1))
            x = x - (phi_2 / eta_h - 0.5) * (one - two) / (r_0 + r_1)
        elif last:
            x = x - 0.5 * np.expm1(-eta_h) * (d - last[-1][0]) * h / last[-1][1]
        x = x + NOISE[i] * goal * np.sqrt(-np.expm1(-2 * h))
        last.append((d, h))
    np.testing.assert_allclose(got, x, atol=1e-6)
