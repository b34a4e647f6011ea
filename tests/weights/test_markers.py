"""What a single file says of its sampling: read as diffusers has it, and the same after writing."""

import json
import warnings

import diffusers
import numpy as np
import pytest
from diffusers.loaders import single_file_utils

import sdjax
from sdjax.diffusion import sampler_from_config, schedule_from_config
from sdjax.diffusion.config import CLASSES
from sdjax.weights import infer, markers
from sdjax.weights.checkpoint import Checkpoint, Part
from sdjax.weights.names import state_from_params
from sdjax.weights.single_file import read_single_file, write_single_file
from sdjax.weights.tensors import lazy, read_safetensors, write_safetensors
from tests.weights.small import SCHEDULER, random_pipeline

EMPTY = lazy(np.zeros(0, np.float32))
V_PREDICTION = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
PLAYGROUND = infer.playground_scheduler_config()
MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
SETTINGS = [
    *({"_class_name": name, **SCHEDULER} for name in CLASSES),
    {"_class_name": "DDIMScheduler", **SCHEDULER, **V_PREDICTION, **ZERO_SNR},
    {"_class_name": "DDIMScheduler", **SCHEDULER, "prediction_type": "sample", "clip_sample": True},
    {"_class_name": "DDIMScheduler", "trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()},
    {"_class_name": "DDIMScheduler", **SCHEDULER, "thresholding": True, "sample_max_value": 2.0},
    {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", **V_PREDICTION},
    {"_class_name": "EulerDiscreteScheduler", **SCHEDULER, "use_karras_sigmas": True},
    {"_class_name": "EulerDiscreteScheduler", **SCHEDULER, "timestep_spacing": "linspace"},
    {"_class_name": "UniPCMultistepScheduler", **SCHEDULER, "solver_order": 3, "predict_x0": False},
    {"_class_name": "DPMSolverMultistepScheduler", **SCHEDULER, "algorithm_type": "sde-dpmsolver++"},
    {"_class_name": "EDMEulerScheduler", "sigma_max": 20.0, "sigma_data": 0.7, **V_PREDICTION},
    infer.cosxl_scheduler_config(0.002, 120.0),
    PLAYGROUND,
]


@pytest.fixture(scope="module")
def parts():
    """Those of a small model, the latents' statistics among them."""
    model = random_pipeline()
    vae = {**model.vae.config.to_dict(), "latents_mean": MEAN, "latents_std": STD}
    configs = {
        "unet": model.unet.config.to_dict(),
        "vae": vae,
        "text_encoder": model.text_encoders[0].config.to_dict(),
    }
    return {name: Part(c, state_from_params(model.params[name])) for name, c in configs.items()}


@pytest.fixture
def single(parts, tmp_path):
    """(write(scheduler) → path, read(path) → scheduler, both without configurations of it)."""

    def write(scheduler, dtype=None):
        path = tmp_path / "model.safetensors"
        write_single_file(path, Checkpoint(parts, "sd1", scheduler), dtype)
        return path

    def read(path, **options):
        configs = {name: part.config for name, part in parts.items()}
        return read_single_file(path, configs, **options).scheduler

    return write, read


def changed(path, change=None, metadata=None):
    """The file with other tensors and metadata, as another program would write it."""
    state, _ = read_safetensors(path)
    state = {key: lazy(tensor.load().copy()) for key, tensor in state.items()}
    write_safetensors(path, (change or dict)(state), metadata=metadata)
    return path


def asked(state, metadata=None, family="sdxl", **options):
    return markers.scheduler_of(state, metadata or {}, family, "epsilon", **options)


@pytest.mark.parametrize(
    "scheduler", SETTINGS, ids=[f"{i} {c['_class_name']}" for i, c in enumerate(SETTINGS)]
)
def test_every_scheduler_setting_comes_back(scheduler, single):
    write, read = single
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(write(scheduler, "float16")) == scheduler


@pytest.mark.parametrize(
    ("scheduler", "keys"),
    [
        ({**SCHEDULER, **V_PREDICTION, **ZERO_SNR}, {"v_pred", "ztsnr"}),
        ({**SCHEDULER, **V_PREDICTION}, {"v_pred"}),
        (SCHEDULER, set()),
        (infer.cosxl_scheduler_config(0.01, 120.0), {"edm_vpred.sigma_min", "edm_vpred.sigma_max"}),
        (PLAYGROUND, {"edm_mean", "edm_std"}),
    ],
)
def test_markers_alone_tell_what_the_network_is(scheduler, keys, single):
    """Metadata are lost where other programs merge models."""
    write, read = single
    scheduler = {"_class_name": "DDIMScheduler", **scheduler}
    path = changed(write(scheduler, "float16"))
    state, metadata = read_safetensors(path)
    assert keys == set(markers.KEYS) & set(state) and metadata == {"format": "pt"}
    found = read(path)
    assert found.get("prediction_type") == scheduler.get("prediction_type", "epsilon")
    if "edm" in str(keys):
        assert found == scheduler
    else:
        expected, again = (schedule_from_config(c).alphas_cumprod for c in (scheduler, found))
        np.testing.assert_array_equal(again, expected)
        first = sampler_from_config(found, 4).timesteps[0]
        assert (first == 999) == ("ztsnr" in keys)


def test_zero_snr_as_diffusers_samples_it():
    """The call that the published models of this kind recommend, and what it gives here."""
    found = asked({"v_pred": EMPTY, "ztsnr": EMPTY})
    theirs = diffusers.EulerDiscreteScheduler.from_config(
        infer.scheduler_config("sdxl", "epsilon"), **V_PREDICTION, **ZERO_SNR
    )
    assert {key: theirs.config[key] for key in found if key != "_class_name"} == {
        key: value for key, value in found.items() if key != "_class_name"
    }
    theirs.set_timesteps(7)
    np.testing.assert_array_equal(sampler_from_config(found, 7).timesteps, theirs.timesteps)


def test_playground_is_what_diffusers_makes_of_it(single):
    theirs = single_file_utils._legacy_load_scheduler(
        diffusers.EDMDPMSolverMultistepScheduler, {}, "scheduler",
        scheduler_type="edm_dpm_solver_multistep",
    )  # fmt: skip
    state = {"edm_mean": lazy(np.float32(MEAN)), "edm_std": lazy(np.float32(STD))}
    found = asked(state)
    assert found["_class_name"] == type(theirs).__name__
    assert {key: theirs.config[key] for key in found if key != "_class_name"} == {
        key: value for key, value in found.items() if key != "_class_name"
    }
    write, _ = single
    path = write(PLAYGROUND, "float16")
    vae = read_single_file(changed(path)).parts["vae"].config
    assert (vae["latents_mean"], vae["latents_std"]) == (MEAN, STD)
    assert vae["scaling_factor"] == single_file_utils.PLAYGROUND_VAE_SCALING_FACTOR
    short = {key: lazy(np.ones(3, np.float32)) for key in ("edm_mean", "edm_std")}
    changed(path, lambda state: {**state, **short})
    with pytest.raises(sdjax.SdjaxError, match="has 3 numbers, but the latents have 4 channels"):
        read_single_file(path)


@pytest.mark.parametrize("low", [None, 0.01])
def test_edm_v_prediction_has_the_levels_of_the_keys(low):
    state = {"edm_vpred.sigma_max": lazy(np.float32(100.0))}
    state |= {} if low is None else {"edm_vpred.sigma_min": lazy(np.float32(low))}
    theirs = diffusers.EDMEulerScheduler(
        sigma_min=low or 0.002, sigma_max=100.0, sigma_data=1.0, sigma_schedule="exponential",
        prediction_type="v_prediction",
    )  # fmt: skip
    theirs.set_timesteps(7)
    table = sampler_from_config(asked(state), 7)
    np.testing.assert_allclose(table.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("state", "metadata", "message"),
    [
        ({"edm_mean": [0.0] * 4}, {}, "has a tensor edm_mean but no edm_std"),
        ({"edm_std": [1.0] * 4}, {}, "has a tensor edm_std but no edm_mean"),
        ({"edm_vpred.sigma_min": 0.1}, {}, "edm_vpred.sigma_min but no edm_vpred.sigma_max"),
        ({"edm_vpred.sigma_max": [1.0, 2.0]}, {}, "sigma_max must hold 1 numbers"),
        ({"edm_vpred.sigma_max": 0.001}, {}, "must rise from above 0"),
        ({"edm_vpred.sigma_max": np.nan}, {}, "sigma_max must hold 1 numbers"),
        ({"v_pred": [], "edm_vpred.sigma_max": 9.0}, {}, "tensors v_pred and edm_vpred.sigma_max"),
        ({"ztsnr": [], "edm_vpred.sigma_max": 9.0}, {}, "EDM has no timesteps"),
        ({"edm_mean": [0.0] * 4, "edm_std": [1.0]}, {}, "has 4 numbers, but edm_std has 1"),
        ({}, {"modelspec.prediction_type": "velocity"}, "is 'velocity', expected epsilon, v, samp"),
        ({}, {"modelspec.prediction_type": "v", "modelspec.predict_key": "epsilon"}, "contradict"),
        ({}, {"sdjax.scheduler": "[]"}, "sdjax.scheduler is no JSON object"),
        ({}, {"sdjax.scheduler": '{"_class_name": []}'}, r"_class_name cannot be \[\]"),
        ({}, {"sdjax.scheduler": '{"_class_name": "EDMEulerScheduler", "sigma_max": "a"}'},
         "sigma_max must be a number, got 'a'"),
        ({"alphas_cumprod": np.float16([0.9, 0.1])}, {}, "too coarse to be followed"),
    ],
)
def test_markers_that_make_no_sense_are_refused(state, metadata, message):
    state = {key: lazy(np.asarray(value, getattr(value, "dtype", np.float32)))
             for key, value in state.items()}  # fmt: skip
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        asked(state, metadata)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "prediction"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({"modelspec.prediction_type": "sample"}, "sample"),
        ({"modelspec.predict_key": "v"}, "v_prediction"),
        ({"ss_v_parameterization": "True"}, "v_prediction"),
        ({"ss_v_parameterization": "False", "modelspec.prediction_type": "None"}, "epsilon"),
    ],
)
def test_metadata_name_the_prediction(metadata, prediction):
    assert asked({}, metadata)["prediction_type"] == prediction
    assert asked({}, {"modelspec.prediction_type": "?"}, prediction_type="sample") == asked(
        {}, prediction_type="sample"
    )


def test_metadata_of_sd_scripts_name_a_schedule_without_a_last_signal():
    """As the tensor does, whatever the network predicts; and nothing where they are false."""
    both = {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}
    assert asked({}, both) == asked({"v_pred": EMPTY, "ztsnr": EMPTY}, {})
    assert asked({}, both)["rescale_betas_zero_snr"] is True
    assert asked({}, both | {"ss_zero_terminal_snr": "False"}) == asked({"v_pred": EMPTY}, {})
    given = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **SCHEDULER}
    with pytest.warns(UserWarning, match="metadata ss_zero_terminal_snr say, not by what the given"):
        assert asked({}, both, given=given)["_class_name"] == "DDIMScheduler"


def test_own_metadata_that_are_out_of_date_give_way_to_the_markers(single):
    write, read = single
    path = write({"_class_name": "LMSDiscreteScheduler", **SCHEDULER})
    metadata = read_safetensors(path)[1]
    changed(path, lambda state: {**state, "v_pred": EMPTY}, metadata)
    with pytest.warns(UserWarning) as told:
        assert read(path) == infer.scheduler_config("sd1", "v_prediction")
    assert "its metadata sdjax.scheduler, which are out of date" in str(told[0].message)
    assert "v_pred" in str(told[1].message)  # against ModelSpec, which was kept as well
    changed(path, None, metadata | {"modelspec.prediction_type": "v"})
    with pytest.warns(UserWarning, match="out of date"):
        assert read(path)["prediction_type"] == "v_prediction"


def test_what_the_file_says_comes_before_the_given_scheduler():
    given = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **SCHEDULER}
    both = {"v_pred": EMPTY, "ztsnr": EMPTY}
    with pytest.warns(UserWarning, match="v_pred, ztsnr say, not by what the given folder"):
        found = asked(both, given=given)
    assert found["_class_name"] == "DDIMScheduler" and found["clip_sample"] is False
    assert found["steps_offset"] == 1  # what the file leaves open is the given one's
    assert sampler_from_config(found, 5).timesteps[0] == 999
    agreeing = {"_class_name": "DDIMScheduler", **SCHEDULER, **V_PREDICTION, **ZERO_SNR}
    own = {"_class_name": "UniPCMultistepScheduler", **agreeing, "solver_order": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked(both, given=agreeing) == agreeing
        assert asked({}, given=agreeing) == agreeing
    with pytest.warns(UserWarning, match="its metadata sdjax.scheduler, not by that of the given"):
        assert asked(both, {"sdjax.scheduler": json.dumps(own)}, given=agreeing) == own
    with pytest.warns(UserWarning, match="v_prediction of the given folder, not by epsilon"):
        assert asked({}, {"modelspec.prediction_type": "epsilon"}, given=agreeing) == agreeing


def test_noise_levels_of_the_file_are_followed():
    """Buffers of latent-diffusion, which programs of its kind load with the weights."""
    plain = infer.scheduler_config("sd1", "epsilon")
    levels = np.asarray(schedule_from_config(plain).alphas_cumprod)
    for dtype in (np.float32, np.float16):
        assert asked({"alphas_cumprod": lazy(levels.astype(dtype))}, family="sd1") == plain
    sigmas = np.sqrt((1 - levels) / levels)
    assert asked({"denoiser.sigmas": lazy(sigmas[::-1])}, family="sd1") == plain
    rescaled = schedule_from_config({**plain, **ZERO_SNR}).alphas_cumprod
    found = asked({"alphas_cumprod": lazy(np.float16(rescaled))}, family="sd1")
    np.testing.assert_array_equal(schedule_from_config(found).alphas_cumprod, rescaled)
    other = np.asarray(sdjax.cosine_schedule(500).alphas_cumprod)
    with pytest.warns(UserWarning, match="its own noise levels, alphas_cumprod"):
        found = asked({"alphas_cumprod": lazy(other)}, family="sd1")
    assert found["num_train_timesteps"] == 500
    again = np.asarray(schedule_from_config(found).alphas_cumprod)
    np.testing.assert_allclose(again, other, rtol=1e-4, atol=1e-7)
