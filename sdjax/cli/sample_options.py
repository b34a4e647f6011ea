"""Options of `sdjax sample` that come from a picture, or from the axes of a grid."""

import csv
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sdjax.errors import SdjaxError
from sdjax.words import hint, plain

# Not of one picture's making, so that no axis can have them.
OF_THE_COMMAND = frozenset(
    "model config dtype quantize word image_encoder out like format json grid x y count "
    "batch_size preview preview_vae safety_checker blank offload refiner motion "
    "motion_like sound fsdp tensor".split()
)

_FOUND = frozenset(["nsfw"])  # what a picture says of itself that is no setting


class Axis(NamedTuple):
    """A setting and its values along one side of a grid of pictures."""

    name: str
    values: list[str]

    @property
    def labels(self) -> list[str]:
        """What is drawn beside the pictures."""
        return [f"{self.name}: {value}" for value in self.values]


def axis(side: str, text: str, command: Callable) -> Axis:
    """The axis of `name=value,value`; SdjaxError for a setting that is none or cannot change."""
    name, _, values = text.partition("=")
    known = set(inspect.signature(command).parameters) - OF_THE_COMMAND
    name = plain(name)
    if name not in known:
        meant = hint(name, known) or f"there are {', '.join(sorted(known))}"
        raise SdjaxError(f"--{side} has no setting {name!r}: {meant}")
    values = next(csv.reader([values], skipinitialspace=True), [])
    if not values or not all(values):
        raise SdjaxError(
            f"--{side} must be a setting and its values, such as steps=10,20, got {text}"
        )
    return Axis(name, values)


def cells(
    arguments: list[str], axes: Mapping[str, Axis], options: Callable
) -> list[dict[str, Any]]:
    """The options of each picture of a grid, row after row; of one where there are no axes.

    options: what reads the arguments.
    """
    several = [arguments]
    for side in ("y", "x"):
        if side in axes:
            name, values = axes[side]
            several = [
                [*without(given, {name}), f"--{name.replace('_', '-')}={value}"]
                for given in several
                for value in values
            ]
    return [options(given) for given in several]


def without(arguments: list[str], names: set[str]) -> list[str]:
    """The arguments without some options and their values."""
    kept, taking = [], True
    for argument in arguments:
        if argument.startswith("--"):
            taking = _name(argument) not in names
        kept += [argument] if taking else []
    return kept


def like_a_picture(arguments: list[str], command: Callable) -> list[str]:
    """The arguments with `--like PICTURE` replaced by the settings of that picture.

    What is given beside it counts. A warning tells what of the picture's settings was not
    understood; SdjaxError where it has none, or where its model is not known.
    """
    given = {_name(argument) for argument in arguments if argument.startswith("--")}
    if "like" not in given:
        return arguments
    path = _value(arguments, "like")
    from sdjax.pipeline.results.notes import read_settings

    settings, left = read_settings(path)
    known = inspect.signature(command).parameters
    for name in settings:
        if name not in known and name not in _FOUND:
            raise SdjaxError(f"{path} has the setting {name!r}, which this version does not know")
    model = left.get("Model") or left.get("Model hash")
    if model and "model" not in given:
        raise SdjaxError(f"{path} was made by the model {model!r}: give it as --model")
    if "image" not in given and "image" not in settings and settings.pop("strength", None):
        left["Denoising strength"] = "of a picture that is not given as --image"
    for name in ("Model", "Model hash"):
        left.pop(name, None)
    if left:
        listed = ", ".join(f"{name} ({value})" for name, value in left.items())
        warnings.warn(f"not understood in {path}, and left out: {listed}", stacklevel=2)
    taken = []
    for name, value in settings.items():
        if name not in given and name not in _FOUND:
            taken += _option(name, value)
    return [*taken, *without(arguments, {"like"})]


def _option(name: str, value) -> list[str]:
    """An option with its value as it is written on the command line."""
    spelled = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [spelled if value else spelled.replace("--", "--no-", 1)]
    if isinstance(value, list) and len(value) != 1:
        return [spelled, *map(str, value)]
    return [f"{spelled}={value[0] if isinstance(value, list) else value}"]


def _name(argument: str) -> str:
    return plain(argument.partition("=")[0])


def _value(arguments: list[str], name: str) -> Path:
    options = (i for i, one in enumerate(arguments) if one.startswith("--"))
    place = next(i for i in options if _name(arguments[i]) == name)
    _, _, value = arguments[place].partition("=")
    value = value or next(iter(arguments[place + 1 :]), "")
    if not value or value.startswith("--"):
        raise SdjaxError(f"--{name} needs a picture")
    return Path(value)
