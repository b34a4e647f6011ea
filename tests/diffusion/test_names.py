"""Names, options and configurations, and what is said about wrong ones."""

import jax
import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler
from diffusers.schedulers import AysSchedules

import sdjax
from sdjax import diffusion
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.samplers.names import CLASSES, canonical_name
from sdjax.diffusion.sigmas import ALIGN_YOUR_STEPS, named_sigmas, timesteps_of_sigmas
from sdjax.errors import SdjaxError

SCHEDULE = diffusion.scaled_linear_schedule()
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


@pytest.mark.parametrize(
    ("spelling", "name", "options"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", {"sigmas": "karras"}),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", {"sigmas": "exponential"}),
        ("DPM++ 3M SDE", "dpmpp_3m_sde", {}),
        ("DPM++ SDE Karras", "dpmpp_sde", {"sigmas": "karras"}),
        ("DPM++ 2S a", "dpmpp_2s_a", {}),
        ("Euler a", "euler_a", {}),
        ("euler_ancestral", "euler_a", {}),
        ("DPM2 a Karras", "dpm2_a", {"sigmas": "karras"}),
        ("dpm_2", "dpm2", {}),
        ("LMS", "lms", {}),
        ("UniPC", "unipc", {}),
        ("uni_pc_bh2", "unipc", {"variant": "bh2"}),
        ("PLMS", "plms", {"runge_kutta": False}),
        ("PNDM", "plms", {}),
        ("DPM++ 2M SGM Uniform", "dpmpp_2m", {"sigmas": "sgm_uniform"}),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", {}),
        ("heun", "heun", {}),
        ("sample_dpmpp_2s_ancestral", "dpmpp_2s_a", {}),
        ("k_euler_a", "euler_a", {}),
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde", {}),
        ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde", {"solver": "heun", "sigmas": "karras"}),
        ("DPM++ 2M Align Your Steps", "dpmpp_2m", {"sigmas": "ays_sd"}),
        ("Euler KL Optimal", "euler", {"sigmas": "kl_optimal"}),
        ("Euler Simple", "euler", {"sigmas": "simple"}),
        ("Euler Normal", "euler", {"spacing": "linspace"}),
        ("ddim_ddim_uniform", "ddim", {"spacing": "leading", "steps_offset": 1}),
        ("DPM++ 2M Automatic", "dpmpp_2m", {}),
        ("k_dpmpp_2m", "dpmpp_2m", {}),
        ("k_dpmpp_2s_a", "dpmpp_2s_a", {}),
        ("k_dpm_2_ancestral", "dpm2_a", {}),
        ("dpmpp_2m_sde_heun_gpu", "dpmpp_2m_sde", {"solver": "heun"}),
        ("DPMSolverMultistep", "dpmpp_2m", {}),
        ("UniPCMultistepScheduler Karras", "unipc", {"sigmas": "karras"}),
        ("IPNDMScheduler", "crash_ipndm", {}),
        ("ipndm", "ipndm", {}),
        ("DPM-Solver++ (2M)", "dpmpp_2m", {}),
        ("dpmsolver++", "dpmpp_2m", {}),
        ("sde-dpmsolver++", "dpmpp_2m_sde", {}),
        ("edm_heun", "edm_heun", {}),
    ],
)
def test_names_of_other_programs(spelling, name, options):
    assert canonical_name(spelling, SAMPLERS) == (name, options)


def test_every_class_has_a_sampler_and_a_configuration():
    for name, sampler in CLASSES.items():
        assert sampler in SAMPLERS
        extra = {"plms": 9, "heun": 3, "dpm2": 3, "dpm2_a": 3, "dpmpp_sde": 3}.get(sampler, 0)
        assert diffusion.sampler_from_config({"_class_name": name}, 4).evaluations == 4 + extra


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(SdjaxError, match="'eulr': the nearest are euler"):
        diffusion.sampler("eulr", SCHEDULE, 10)
    with pytest.raises(SdjaxError, match="unsupported _class_name 'DPMSolverMultistep'; the near"):
        diffusion.sampler_from_config({"_class_name": "DPMSolverMultistep"}, 10)
    with pytest.raises(SdjaxError, match="use_flow_sigmas is not supported"):
        diffusion.sampler_from_config(
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, 10
        )


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("ddim", 10, {"etta": 1.0}, "did you mean eta"),
        ("euler", 10, {"sigmas": "caras"}, "unknown sigmas 'caras'"),
        ("ddim", 10, {"spacing": "even"}, "unknown spacing 'even'"),
        ("ddim", 0, {}, "whole number from 1 on, got 0"),
        ("ddim", -1, {}, "whole number from 1 on, got -1"),
        ("dpmpp_2m", 1.5, {}, "whole number from 1 on, got 1.5"),
        ("euler", None, {}, "whole number from 1 on, got None"),
        ("euler", None, {"sigmas": "karras"}, "whole number from 1 on, got None"),
        ("euler", 20, {"timesteps": [900, 500, 100]}, "steps is 20 but timesteps lists 3"),
        ("dpmpp_2m", 4, {"sigmas": [9.0, 3.0, 1.0, 0.0]}, "steps is 4 but sigmas lists 3"),
        ("DPM++ 2M Karras", None, {"timesteps": [900, 500]}, "give one of them"),
        ("euler", None, {"timesteps": [900, 500], "spacing": "even"}, "unknown spacing 'even'"),
        ("ddim", 1001, {}, "steps must be between 1 and 1000"),
        ("ddim", 4, {"steps_offset": 300}, "past 999"),
        ("ddim", None, {"timesteps": [10, 20]}, "falling"),
        ("euler", None, {"sigmas": [1.0, 2.0]}, "falling"),
        ("ddim", None, {"timesteps": [1000, 10]}, "must lie between 999 and 0"),
        ("ddim", 10, {"start": 10}, "start must be between 0 and 9"),
        ("dpmpp_2m", 10, {"order": 4}, "order must be"),
        ("lms", 10, {"order": 5}, "order must be a whole number from 1 to 4"),
        ("dpmpp_2m", 10, {"algorithm": "sde_dpm", "order": 3, "final": 0.1}, "orders 1 and 2"),
        ("ddim", 10, {"eta": 5}, "eta must be between 0 and 1, got 5"),
        ("tcd", 4, {"eta": 1.5}, "eta must be between 0 and 1"),
        ("euler_a", 10, {"eta": -1.0}, "eta must be 0 or more"),
        ("dpmpp_2m_sde", 10, {"eta": -1.0}, "eta must be 0 or more"),
        ("dpmpp_2m", 10, {"algorithm": "dpm"}, "cannot end at zero"),
        ("unipc", 10, {"variant": "bh3"}, "expected bh1 or bh2"),
        ("ddpm", 10, {"variance": "learned"}, "unknown variance"),
        ("ddpm", 10, {"prediction_type": "eps"}, "unknown prediction"),
        ("lcm", 60, {}, "steps must be between 1 and 50"),
        ("plms", 3, {"runge_kutta": True}, "4 steps or more"),
    ],
)
def test_wrong_options_are_told(name, steps, options, message):
    with pytest.raises(SdjaxError, match=message):
        diffusion.sampler(name, SCHEDULE, steps, **options)


def test_an_order_that_no_step_reaches_is_no_error():
    options = {"algorithm": "sde_dpm", "order": 3, "final": "sigma_min"}
    assert diffusion.sampler("dpmpp_2m", SCHEDULE, 2, **options).evaluations == 2


def test_timesteps_that_levels_replace_need_not_fit():
    """A spacing with an offset would go past the last timestep here."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 100,
              "timestep_spacing": "leading", "steps_offset": 1}  # fmt: skip
    levels = {"use_exponential_sigmas": True}
    assert diffusion.sampler_from_config(config | levels, 99).evaluations == 99


def test_what_needs_a_schedule_says_so():
    assert diffusion.sampler("edm_heun", None, 4).evaluations == 7
    with pytest.raises(SdjaxError, match="euler needs the schedule"):
        diffusion.sampler("euler", None, 4)


def test_unknown_entries_of_a_configuration_are_told():
    euler = {"_class_name": "EulerDiscreteScheduler"}
    for name in ("interpolation_type", "timestep_type"):
        with pytest.raises(SdjaxError, match=f"unknown {name} 'cubic': expected"):
            diffusion.sampler_from_config({**euler, name: "cubic"}, 4)


def test_another_sampler_takes_the_configurations_settings():
    """Of its own family only."""
    edm = {"_class_name": "EDMEulerScheduler", "sigma_max": 20.0, "sigma_data": 1.0}
    for name in ("edm_heun", "heun", "edm_dpmpp_2m", "DPM++ 2M Karras"):
        table = diffusion.sampler_from_config(edm, 5, name)
        np.testing.assert_allclose(table.timesteps[0], 0.25 * np.log(20), rtol=1e-6)
        np.testing.assert_allclose(table.rows.input_scale[0], 1 / np.hypot(20, 1), rtol=1e-6)
    with pytest.raises(SdjaxError, match="unipc does not fit a network of EDMEulerSch"):
        diffusion.sampler_from_config(edm, 5, "unipc")
    with pytest.raises(SdjaxError, match="edm_heun does not fit a network of PNDMScheduler"):
        diffusion.sampler_from_config(STABLE_DIFFUSION, 5, "edm_heun")
    karras = {**STABLE_DIFFUSION, "use_karras_sigmas": True, "clip_sample": True}
    for name in ("dpmpp_2s_a", "ipndm"):
        table = diffusion.sampler_from_config(karras, 5, name)
        expected = diffusion.sampler_from_config({**karras, "use_karras_sigmas": False}, 5, name)
        assert table.clip == 1 and table.timesteps[1] != expected.timesteps[1]
    for name, entry in SAMPLERS.items():
        if entry.needs_schedule:
            assert diffusion.sampler_from_config(STABLE_DIFFUSION, 4, name).evaluations >= 4


def test_another_sampler_from_one_configuration():
    """As diffusers' from_config."""
    table = diffusion.sampler_from_config(STABLE_DIFFUSION, 20)
    np.testing.assert_array_equal(table.timesteps[:3], [951, 901, 901])
    for name, changes in (("dpmpp_2m", {}), ("DPM++ 2M Karras", {"use_karras_sigmas": True})):
        pndm = PNDMScheduler.from_config(STABLE_DIFFUSION)
        other = DPMSolverMultistepScheduler.from_config(pndm.config, **changes)
        other.set_timesteps(20)
        table = diffusion.sampler_from_config(STABLE_DIFFUSION, 20, name)
        np.testing.assert_array_equal(table.timesteps, other.timesteps)
    silent = {"_class_name": "DDIMScheduler"}
    for name, evaluations in (("plms", 5), ("PNDMScheduler", 13)):
        assert diffusion.sampler_from_config(silent, 4, name).evaluations == evaluations
    table = diffusion.sampler_from_config(STABLE_DIFFUSION, 20, "euler", spacing="leading")
    np.testing.assert_array_equal(table.timesteps[:2], [951, 901])


def test_custom_timesteps_are_the_spacing_they_repeat():
    for name in ("ddim", "euler", "dpmpp_2m", "heun"):
        table = diffusion.sampler(name, SCHEDULE, 10, spacing="leading")
        chosen = list(dict.fromkeys(table.timesteps.tolist()))
        again = diffusion.sampler(name, SCHEDULE, None, timesteps=chosen)
        for a, b in zip(jax.tree.leaves(table.rows), jax.tree.leaves(again.rows), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "sigmas",
    ["karras", "exponential", "polyexponential", "beta", "lu", "kl_optimal", "sgm_uniform",
     "simple", *ALIGN_YOUR_STEPS],
)  # fmt: skip
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_sigma_schedules_fall_from_the_noisiest_level(sigmas, name):
    table = diffusion.sampler(name, SCHEDULE, 10, sigmas=sigmas, prediction_type="x_0")
    assert table.evaluations == 10
    timesteps = table.timesteps
    assert np.all(np.diff(timesteps) <= 0) and timesteps[0] >= 998 and timesteps[-1] >= 0


def test_align_your_steps_gives_the_published_timesteps():
    """The paper's ten timesteps of Stable Diffusion 1.5, to the rounding of its table."""
    table = np.asarray(SCHEDULE.sigmas)
    places = timesteps_of_sigmas(np.array(ALIGN_YOUR_STEPS["ays_sd"][:10]), table)
    np.testing.assert_allclose(
        places, [999, 850, 736, 645, 545, 455, 343, 233, 124, 24], atol=1.5
    )


def test_align_your_steps_has_the_published_levels():
    for name, model in (("ays_sd", ""), ("ays_sdxl", "XL"), ("ays_svd", "Video")):
        published = AysSchedules[f"StableDiffusion{model}Sigmas"]
        published = published[:-1] if published[-1] == 0 else published
        ours = ALIGN_YOUR_STEPS[name][: len(published)]
        np.testing.assert_allclose(ours, published, rtol=0.015)  # rounded there


def test_levels_of_comfyui_and_of_the_angle():
    table = np.asarray(SCHEDULE.sigmas)
    uniform = named_sigmas("sgm_uniform", 8, 0.03, 14.0, table)
    np.testing.assert_allclose(
        timesteps_of_sigmas(uniform, table), np.linspace(999, 0, 9)[:-1], atol=1e-3
    )
    simple = named_sigmas("simple", 3, 0.03, 14.0, table)
    np.testing.assert_array_equal(simple, table[[999, 666, 333]])
    angles = np.arctan(named_sigmas("kl_optimal", 4, 0.03, 14.0, table))
    np.testing.assert_allclose(angles, np.linspace(np.arctan(14), np.arctan(0.03), 4))
    steep, plain = (named_sigmas("polyexponential", 5, 0.1, 10.0, table, rho) for rho in (2, 1))
    share = np.log(steep / 0.1) / np.log(100)
    np.testing.assert_allclose(share, np.linspace(1, 0, 5) ** 2, atol=1e-9)
    assert steep[2] < plain[2]


def test_polyexponential_of_one_is_exponential():
    for rho, same in ((1.0, True), (0.8, False)):
        tables = [
            diffusion.sampler("euler", SCHEDULE, 10, sigmas="exponential"),
            diffusion.sampler("euler", SCHEDULE, 10, sigmas="polyexponential", rho=rho),
        ]
        assert np.allclose(tables[0].timesteps, tables[1].timesteps) == same


def test_only_exploding_samplers_scale_their_noise():
    """x is of unit variance where the table keeps it so."""
    for name, entry in SAMPLERS.items():
        if entry.needs_schedule and "inverse" not in name:
            table = diffusion.sampler(name, SCHEDULE, 4)
            wanted = np.asarray(SCHEDULE.sigmas)[-1] if table.rows.input_scale[0] < 0.1 else 1
            np.testing.assert_allclose(table.initial_scale, wanted, rtol=1e-5, err_msg=name)


def test_custom_sigmas_with_and_without_their_last():
    given = diffusion.sampler("euler", SCHEDULE, None, sigmas=[10.0, 3.0, 1.0])
    ending = diffusion.sampler("euler", SCHEDULE, None, sigmas=[10.0, 3.0, 1.0, 0.0])
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(ending), strict=True):
        np.testing.assert_array_equal(a, b)


def test_public_names():
    for name in ("sampler", "sampler_from_config", "sample", "add_noise", "zero_terminal_snr"):
        assert getattr(sdjax, name) is getattr(diffusion, name)
    assert all(hasattr(diffusion, name) for name in diffusion.__all__)
