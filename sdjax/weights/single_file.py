"""Original single files of Stable Diffusion (.safetensors, .ckpt), read and written.

Read are whole models (SD1, SD2, SDXL, refiner, in all their input channels) and parts alone
(U-Net, ControlNet, autoencoder, text encoder) in the original or in diffusers' names.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.weights import infer, leftovers, markers, modelspec, openclip, taesd, vision_names
from sdjax.weights.checkpoint import Checkpoint, Part
from sdjax.weights.foreign import SAFETENSORS, first_bytes, is_gguf, refuse_quantised
from sdjax.weights.kinds import LATENT_CHANNELS, family_of, given_beside
from sdjax.weights.layout import TINY, UNET, original_state, second_alone, split_parts
from sdjax.weights.pickles import read_pickle
from sdjax.weights.quantized import bits_and_bytes, scaled_fp8
from sdjax.weights.quantized.files import gathered
from sdjax.weights.quantized.gguf_files import read_gguf
from sdjax.weights.tensors import (
    LazyTensor,
    State,
    read_safetensors,
    write_safetensors,
)

SD2_V_SIZE = 96  # of latents: SD2 that predicts v was trained at 768 pixels


def read_file(path: str | os.PathLike) -> tuple[State, dict[str, str]]:
    """Describes the tensors of a .safetensors, .gguf, .ckpt, .bin or .pt file: (state, metadata).

    Weights that other programs hold in few bits are described as the wide ones that they stand for,
    those of `sdjax.quantize` as they are. The kind is told by the content, not by the name. Raises SdjaxError for anything else.
    """
    check_local(path)
    path = Path(path)
    if not path.is_file():
        raise SdjaxError(f"no such file: {path}")
    if is_gguf(path):
        return read_gguf(path), {}
    if _is_pickled(path):
        content = read_pickle(path)
        inner = content.get("state_dict", content)
        state = _tensors(inner)
        if not state and isinstance(inner, dict):  # dictionaries of them, as of an IP-Adapter
            state = {
                f"{name}.{key}": tensor
                for name, group in inner.items()
                for key, tensor in _tensors(group).items()
            }
        if not state:
            raise SdjaxError(f"{path} holds no tensors")
        step = content.get("global_step")
        metadata = {"global_step": str(step)} if type(step) is int else {}
    else:
        state, metadata = read_safetensors(path)
        state = gathered(path, state, metadata)
    try:
        state = scaled_fp8.wide(bits_and_bytes.wide(state))
    except SdjaxError as error:
        raise SdjaxError(f"{path}: {error}") from error
    refuse_quantised(path, state)
    return state, metadata


def _tensors(value) -> State:
    """The tensors of a dictionary in a pickle; nothing of anything else."""
    given = value if isinstance(value, dict) else {}
    return {str(key): tensor for key, tensor in given.items() if isinstance(tensor, LazyTensor)}


def _is_pickled(path: Path) -> bool:
    """Whether a file is PyTorch's, by its first bytes, or by its name where they do not say."""
    head = first_bytes(path)
    if head[4:9] == SAFETENSORS:
        return False
    if head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle
        return True
    return path.suffix in (".ckpt", ".bin", ".pt", ".pth")


def read_single_file(
    path: str | os.PathLike,
    configs: Mapping[str, Mapping] | None = None,
    prediction_type: str | None = None,
) -> Checkpoint:
    """Reads an original file, or one part alone, as a `Checkpoint`.

    configs: config.json of parts and of schedulers, in place of what is inferred. What the file
        says of its sampling comes first; see `sdjax.weights.markers.scheduler_of`.
    prediction_type: "epsilon" or "v_prediction"; by default what the file's markers say, the given
        scheduler, the file's metadata, or the published models: v for SD2 from text alone, epsilon
        for all others.
    Raises SdjaxError where the file is not a Stable Diffusion checkpoint.
    """
    state, metadata = read_file(path)
    given = configs or {}
    try:
        return _read(Path(path), state, metadata, given, prediction_type)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, SdjaxError):
            raise SdjaxError(f"{path}: {error}") from error
        raise SdjaxError(f"{path} is not a whole checkpoint: {error} is missing") from error


def _read(
    path: Path,
    state: State,
    metadata: Mapping[str, str],
    given: Mapping[str, Mapping],
    prediction_type: str | None,
) -> Checkpoint:
    if taesd.is_half(state):
        state = taesd.both_halves(path, state, lambda sibling: read_file(sibling)[0])
    leftovers.tell(state)
    states = split_parts(state)
    if second_alone(states, given, metadata):
        states = {"text_encoder_2": states["text_encoder"]}
    parts = configured(states, given, modelspec.family_said(metadata) or "sd1")
    if not parts:
        raise SdjaxError(
            "not a Stable Diffusion checkpoint: no U-Net, ControlNet, autoencoder or text encoder "
            f"was found among its {len(state)} tensors ({', '.join(sorted(state)[:3])}, …)"
        )
    family, marks = family_of(parts), markers.read_marks(state)
    scheduler = markers.scheduler_of(
        state, metadata, family, _published_prediction(family, parts, metadata),
        given.get("scheduler"), prediction_type,
    )  # fmt: skip
    if family == "sd2" and "unet" in parts and "unet" not in given:
        unet = parts["unet"]
        if modelspec.prediction_of(scheduler) == "v_prediction":
            parts["unet"] = Part({**unet.config, "sample_size": SD2_V_SIZE}, unet.state)
    if marks.mean and "vae" in parts:
        parts["vae"] = _with_statistics(parts["vae"], marks)
    low_res = given.get("low_res_scheduler") or markers.own_metadata(metadata, markers.LOW_RES)
    if family == "x4" and not low_res:
        low_res = infer.low_res_scheduler_config()
    return Checkpoint(parts, family, scheduler, low_res, metadata)


def _with_statistics(vae: Part, marks: markers.Marks) -> Part:
    """The autoencoder whose latents have the mean and deviation that the file says."""
    channels = vae.config.get("latent_channels") or LATENT_CHANNELS
    if len(marks.mean) != channels:
        raise SdjaxError(
            f"{markers.MEAN} has {len(marks.mean)} numbers, but the latents have {channels} channels"
        )
    statistics = {
        "latents_mean": list(marks.mean),
        "latents_std": list(marks.std),
        "scaling_factor": infer.PLAYGROUND_SCALING,
    }
    return Part({**vae.config, **statistics}, vae.state)


def configured(
    states: Mapping[str, State], given: Mapping[str, Mapping], family: str = "sd1"
) -> dict[str, Part]:
    """Parts with their configurations, given or inferred; family: of an autoencoder alone."""
    if "unet" in states:
        family = infer.unet_family(given.get("unet") or infer.unet_config(states["unet"]))
    parts = {}
    for name, state in states.items():
        if name in given:
            config = given[name]
        elif name == "unet":
            config = infer.unet_config(state)
        elif name == "controlnet":
            config = infer.controlnet_config(state)
        elif name == "vae" and TINY in state:
            config = {"_class_name": "AutoencoderTiny"}
        elif name == "vae":
            config = infer.vae_config(state, family)
        elif name == "image_encoder":
            config = vision_names.vision_config(vision_names.vision_state(state))
        else:
            config = infer.text_config(state)
        if name.startswith("text_encoder") and openclip.PROJECTION in state:
            if openclip.is_projected(config) or name == "text_encoder_2":
                state = openclip.with_prefix(state)
            else:  # the given configuration's encoder has none
                state = {key: t for key, t in state.items() if key != openclip.PROJECTION}
        parts[name] = Part(config, state)
    return parts


def _published_prediction(family: str, parts: Mapping[str, Part], metadata: Mapping) -> str:
    """What the published models of a family predict, of files that do not say."""
    if family in ("x4", "svd"):
        return "v_prediction"
    plain = "unet" in parts and not given_beside(parts)
    if family == "sd2" and plain and metadata.get("global_step") != "875000":
        return "v_prediction"
    return "epsilon"


def write_single_file(
    path: str | os.PathLike,
    checkpoint: Checkpoint,
    dtype=None,
    metadata: Mapping[str, str] | None = None,
    fp8: bool = False,
) -> None:
    """Writes a checkpoint as an original single .safetensors file with markers and ModelSpec.

    metadata: more of our own. fp8: linear layers of the U-Net as scaled fp8.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SdjaxError(f"a single file is written as .safetensors, got {path.name}")
    state = original_state(checkpoint) | markers.marker_tensors(checkpoint)
    metadata = {
        **modelspec.modelspec(checkpoint, path.stem),
        **markers.scheduler_metadata(checkpoint),
        **(metadata or {}),
    }
    exact = set(markers.NUMBERS)
    if fp8:
        wide = state
        state = scaled_fp8.narrowed(state, UNET)
        exact |= {key for key, tensor in state.items() if tensor is not wide.get(key)}
    write_safetensors(path, state, dtype, metadata, exact)
