"""TAESD as its author publishes it: an encoder's and a decoder's file that lie side by side."""

from collections.abc import Callable, Mapping
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.weights.tensors import LazyTensor, State


def is_half(state: Mapping[str, LazyTensor]) -> bool:
    """Whether a state is one of the two: layers without names, only numbered."""
    return "3.conv.0.weight" in state and all(key.split(".")[0].isdecimal() for key in state)


def both_halves(
    path: Path, state: Mapping[str, LazyTensor], read: Callable[[Path], State]
) -> State:
    """The whole autoencoder's state under diffusers' names, of the half that `path` holds.

    read: gives the state of the other's file. Raises SdjaxError where it is not there.
    """
    halves = {"encoder": state} if "0.weight" in state else {"decoder": state}
    (half,) = halves
    other = "decoder" if half == "encoder" else "encoder"
    sibling = path.with_name(path.name.replace(half, other))
    if half not in path.name or not sibling.is_file():
        raise SdjaxError(
            f"{path} is TAESD's {half} alone: the {other} must lie beside it, under the same name "
            f"with {other} for {half}"
        )
    halves[other] = read(sibling)
    result = {f"encoder.layers.{key}": tensor for key, tensor in halves["encoder"].items()}
    for key, tensor in halves["decoder"].items():
        # Layer 0 clips the latents, which diffusers does not count.
        number, _, rest = key.partition(".")
        result[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor
    return result
