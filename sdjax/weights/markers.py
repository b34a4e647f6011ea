"""How a single file says in what way it is sampled, read and written.

Programs look for tensors beside the networks': `v_pred` and `ztsnr` (empty), `edm_vpred.sigma_max`
and `.sigma_min` (CosXL), `edm_mean` and `edm_std` (Playground 2.5). What these cannot say stands in
metadata of our own, which count as long as they agree with the markers: another program that
changes a model keeps or drops metadata without looking at them.
"""

import dataclasses
import json
import numbers
import warnings
from collections.abc import Mapping

import numpy as np

from sdjax.diffusion import schedule_from_config
from sdjax.errors import SdjaxError
from sdjax.weights import infer
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.modelspec import prediction_of, prediction_said
from sdjax.weights.tensors import LazyTensor, State, lazy

V, ZERO_SNR = "v_pred", "ztsnr"
SIGMA_MIN, SIGMA_MAX = "edm_vpred.sigma_min", "edm_vpred.sigma_max"
MEAN, STD = "edm_mean", "edm_std"
NUMBERS = (SIGMA_MIN, SIGMA_MAX, MEAN, STD)
KEYS = (V, ZERO_SNR, *NUMBERS)
TRAINED_SO = "ss_zero_terminal_snr"  # of sd-scripts' metadata, which says the same as `ztsnr`
LEVELS = ("alphas_cumprod", "denoiser.sigmas")

SCHEDULER, LOW_RES = "sdjax.scheduler", "sdjax.low_res_scheduler"

_CLOSE = {"rtol": 1e-2, "atol": 1e-5}  # of numbers that may have been kept in 8 bits of mantissa


@dataclasses.dataclass(frozen=True)
class Marks:
    """What the marker tensors of a file say.

    sigmas: smallest and largest σ of an EDM network that predicts v. mean, std: of the latents of
    an EDM network of the other sign, a number a channel.
    """

    v: bool = False
    zero_snr: bool = False
    sigmas: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def agree(self, scheduler: Mapping) -> bool:
        """Whether a file with this scheduler would have these marks, the latents' aside."""
        other = _marks_of(scheduler)
        sigmas = self.sigmas is not None and other.sigmas is not None
        return (
            (self.v, self.zero_snr) == (other.v, other.zero_snr)
            and (np.allclose(self.sigmas, other.sigmas, **_CLOSE) if sigmas
                 else self.sigmas is other.sigmas)
            and (self.mean is None or _is_playground(scheduler))
        )  # fmt: skip


def read_marks(state: Mapping[str, LazyTensor]) -> Marks:
    """What the marker tensors of a file say; SdjaxError where they say half or two things."""
    for key, other in ((MEAN, STD), (STD, MEAN), (SIGMA_MIN, SIGMA_MAX)):
        if key in state and other not in state:
            raise SdjaxError(f"the file has a tensor {key} but no {other}, which belongs to it")
    asked = [key for key in (V, SIGMA_MAX, MEAN) if key in state]
    if len(asked) > 1:
        raise SdjaxError(
            f"the file has tensors {' and '.join(asked)}, each of which says that the network is "
            "of another kind"
        )
    if ZERO_SNR in state and asked not in ([], [V]):
        raise SdjaxError(f"the file has tensors {asked[0]} and {ZERO_SNR}: EDM has no timesteps")
    sigmas = None
    if SIGMA_MAX in state:
        (low,) = _numbers(state, SIGMA_MIN, 1) if SIGMA_MIN in state else (infer.EDM_SIGMA_MIN,)
        (high,) = _numbers(state, SIGMA_MAX, 1)
        if not 0 < low < high:
            raise SdjaxError(f"{SIGMA_MIN} and {SIGMA_MAX} must rise from above 0: {low}, {high}")
        sigmas = low, high
    mean, std = (_numbers(state, key) if key in state else None for key in (MEAN, STD))
    if mean and len(mean) != len(std):
        raise SdjaxError(f"{MEAN} has {len(mean)} numbers, but {STD} has {len(std)}")
    return Marks(V in state, ZERO_SNR in state, sigmas, mean, std)


def _numbers(state: Mapping[str, LazyTensor], key: str, count: int | None = None) -> tuple:
    values = np.ravel(state[key].load()).astype(np.float64)
    if not len(values) or not np.isfinite(values).all() or count not in (None, len(values)):
        raise SdjaxError(f"the tensor {key} must hold {count or 'finite'} numbers, got {values}")
    # As they were before they were rounded to float32.
    return tuple(float(np.format_float_positional(np.float32(value))) for value in values)


def _is_edm(scheduler: Mapping) -> bool:
    return str(scheduler.get("_class_name")).startswith("EDM")


def _edm(scheduler: Mapping) -> tuple[float, float, float]:
    """(smallest σ, largest σ, σ of the data) of an EDM scheduler."""
    known = {"sigma_min": infer.EDM_SIGMA_MIN, "sigma_max": 80.0, "sigma_data": 0.5}
    given = {name: scheduler.get(name) for name in known}
    for name, value in given.items():
        if not isinstance(value, numbers.Real | None):
            raise SdjaxError(f"the scheduler's {name} must be a number, got {value!r}")
    return tuple(known[name] if value is None else value for name, value in given.items())


def _is_playground(scheduler: Mapping) -> bool:
    kind = infer.playground_scheduler_config()
    return (
        _is_edm(scheduler)
        and prediction_of(scheduler) == kind["prediction_type"]
        and _edm(scheduler) == _edm(kind)
    )


def _marks_of(scheduler: Mapping) -> Marks:
    """The marks of a scheduler's configuration; those of latents are the autoencoder's."""
    v = prediction_of(scheduler) == "v_prediction"
    if _is_edm(scheduler):
        low, high, data = _edm(scheduler)
        # Programs take CosXL's σ of the data for granted.
        return Marks(sigmas=(low, high) if v and data == 1 else None)
    return Marks(v, bool(scheduler.get("rescale_betas_zero_snr")))


def marker_tensors(checkpoint: Checkpoint) -> State:
    """The marker tensors of a checkpoint with a U-Net, in float32 whatever its weights are."""
    scheduler = checkpoint.scheduler
    if "unet" not in checkpoint.parts or not scheduler:
        return {}
    marks, values = _marks_of(scheduler), {}
    values |= {V: []} if marks.v else {}
    values |= {ZERO_SNR: []} if marks.zero_snr else {}
    if marks.sigmas:
        values |= dict(zip((SIGMA_MIN, SIGMA_MAX), marks.sigmas, strict=True))
    vae = checkpoint.parts["vae"].config if "vae" in checkpoint.parts else {}
    mean, std = vae.get("latents_mean"), vae.get("latents_std")
    if mean and std and _is_playground(scheduler):
        values |= {MEAN: mean, STD: std}
    return {key: lazy(np.float32(value)) for key, value in values.items()}


def scheduler_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Our own metadata of a checkpoint with a U-Net: its schedulers' whole configurations."""
    both = {SCHEDULER: checkpoint.scheduler, LOW_RES: checkpoint.low_res_scheduler}
    if "unet" not in checkpoint.parts:
        return {}
    return {key: json.dumps(dict(c), sort_keys=True) for key, c in both.items() if c}


def own_metadata(metadata: Mapping[str, str], key: str) -> dict:
    """A JSON object of our own metadata, empty where there is none; SdjaxError for anything else."""
    if key not in metadata:
        return {}
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SdjaxError(f"the metadata's {key} is no JSON object")
    for name in ("_class_name", "prediction_type"):
        if not isinstance(value.get(name, ""), str):
            raise SdjaxError(f"the metadata's {key}: {name} cannot be {value[name]!r}")
    return value


def scheduler_of(
    state: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    family: str,
    published: str,
    given: Mapping | None = None,
    prediction_type: str | None = None,
) -> dict:
    """The scheduler_config.json that a file asks for.

    What the file says of itself comes first: our own metadata where its markers and ModelSpec agree
    with them, else the markers. What it leaves open is that of the `given` configuration, which
    comes before ModelSpec, or of the family's published models, which predict `published`. Warns
    where two of these contradict one another. prediction_type: in place of what all of them say.
    """
    marks = read_marks(state)
    if metadata.get(TRAINED_SO, "").strip().lower() == "true" and not (marks.sigmas or marks.mean):
        marks = dataclasses.replace(marks, zero_snr=True)
    said = prediction_type or prediction_said(metadata)
    if own := own_metadata(metadata, SCHEDULER):
        if marks.agree(own) and (prediction_type or said in (None, prediction_of(own))):
            if given and _settings(given) != _settings(own):
                _tell(f"the scheduler in its metadata {SCHEDULER}", "that of the given folder")
            return {**own, **_predicting(prediction_type)}
        _tell("its markers or ModelSpec", f"its metadata {SCHEDULER}, which are out of date")
    scheduler = given or infer.scheduler_config(family, said or published)
    if marks != Marks() and not marks.agree(scheduler):
        if given or (marks.v and said not in (None, "v_prediction")):
            told = ", ".join(key for key in KEYS if key in state)
            told = f"tensors {told}" if told else f"metadata {TRAINED_SO}"
            _tell(f"what its {told} say", "what the given folder or its metadata say")
        scheduler = _marked(scheduler, marks)
    elif said not in (None, prediction_of(scheduler)) and not prediction_type:
        _tell(f"{prediction_of(scheduler)} of the given folder", f"{said} of its own metadata")
    scheduler = {**scheduler, **_predicting(prediction_type)}
    return scheduler if _is_edm(scheduler) else _with_levels(scheduler, state)


def _tell(followed: str, other: str) -> None:
    warnings.warn(f"the file is sampled by {followed}, not by {other}", stacklevel=5)


def _settings(scheduler: Mapping) -> dict:
    return {key: v for key, v in scheduler.items() if key != "_diffusers_version"}


def _predicting(prediction_type: str | None) -> dict:
    return {"prediction_type": prediction_type} if prediction_type else {}


def _marked(scheduler: Mapping, marks: Marks) -> dict:
    """A scheduler's configuration made one of a network with these marks."""
    if marks.mean:
        return infer.playground_scheduler_config()
    if marks.sigmas:
        return infer.cosxl_scheduler_config(*marks.sigmas)
    if _is_edm(scheduler):
        scheduler = infer.scheduler_config("sdxl", "epsilon")
    scheduler = {**scheduler, **_predicting("v_prediction" if marks.v else None)}
    return _without_last_signal(scheduler) if marks.zero_snr else scheduler


def _without_last_signal(scheduler: Mapping) -> dict:
    """A scheduler's configuration of a network whose last timestep is pure noise."""
    if scheduler.get("_class_name") == "PNDMScheduler":  # diffusers' does not know it
        kept = {key: value for key, value in scheduler.items() if key != "skip_prk_steps"}
        scheduler = {**kept, "_class_name": "DDIMScheduler", "clip_sample": False}
    return {**scheduler, **infer.ZERO_SNR}


def _with_levels(scheduler: Mapping, state: Mapping[str, LazyTensor]) -> dict:
    """A scheduler's configuration with the noise levels that the file itself holds, if any.

    Those of latent-diffusion's buffers, which programs of its kind load with the weights.
    """
    key = next((key for key in LEVELS if key in state), None)
    if key is None:
        return dict(scheduler)
    levels = np.ravel(state[key].load()).astype(np.float64)
    if key == LEVELS[1]:
        levels = np.sort(1 / (1 + levels**2))[::-1]
    for known in (scheduler, _without_last_signal(scheduler)):
        signal = schedule_from_config(known).alphas_cumprod
        if len(levels) == len(signal) and np.allclose(levels, signal, **_CLOSE):
            return dict(known)
    if state[key].dtype.itemsize < 4:
        raise SdjaxError(
            f"the file's {key} are not those of {scheduler.get('_class_name')}'s schedule, and too "
            "coarse to be followed: give a diffusers folder with its scheduler as config"
        )
    betas = 1 - levels / np.append(1.0, levels[:-1])
    own = {"trained_betas": betas.tolist(), "num_train_timesteps": len(betas)}
    scheduler = {**scheduler, **own, "rescale_betas_zero_snr": False}
    schedule_from_config(scheduler)  # refuses what is no schedule
    _tell(f"its own noise levels, {key}", "those of its kind's published models")
    return scheduler
