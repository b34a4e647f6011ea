"""HiFi-GAN's files: transformers' `SpeechT5HifiGan`, and the authors' with their weight norms."""

import re
from collections.abc import Mapping

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights.tensors import LazyTensor, State, lazy

# Of a weight norm, in PyTorch's older and newer names: length and direction.
_NORMED = re.compile(r"(.+)\.(?:weight_([gv])|parametrizations\.weight\.original([01]))")
_BINS = "conv_pre.weight"
# Of the spectrogram, before the first layer: a name that a parameter tree keeps for norms.
SPREAD, THEIRS = "spread", "scale"


def vocoder_state(state: Mapping[str, LazyTensor]) -> State:
    """A vocoder's tensors under our names, weight norms folded (arXiv 1602.07868, equation 2)."""
    found: State = {}
    lengths: State = {}
    directions: State = {}
    for key, tensor in state.items():
        key = re.sub(r"^ups\.", "upsampler.", key.removeprefix("generator."))
        if match := _NORMED.fullmatch(key):
            first = (match[2] or match[3]) in ("g", "0")
            (lengths if first else directions)[match[1]] = tensor
        else:
            found[SPREAD if key == THEIRS else key] = tensor
    if alone := sorted(set(lengths) ^ set(directions)):
        raise SdjaxError(f"the weight norm of {alone[0]} has only one of length and direction")
    for name, direction in directions.items():
        found[f"{name}.weight"] = _folded(lengths[name], direction)
    if _BINS not in found:
        raise SdjaxError(f"no vocoder: its tensor {_BINS} is missing")
    bins = found[_BINS].shape[1]
    for name, value in (("mean", 0), (SPREAD, 1)):  # which the authors' files do not have
        found.setdefault(name, lazy(np.full(bins, value, np.float32)))
    return found


def _folded(length: LazyTensor, direction: LazyTensor) -> LazyTensor:
    def weight(v):
        v, g = np.float32(v), np.float32(length.load())
        norm = np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=(1, 2), keepdims=True))
        return np.float32(g * (v / norm))

    return direction.map(direction.shape, weight)


def theirs(state: State) -> State:
    """A state under transformers' names."""
    return {THEIRS if key == SPREAD else key: tensor for key, tensor in state.items()}
