"""peft's configuration of an adapter: by how much the product of its factors is multiplied.

peft writes it beside the factors, as adapter_config.json; diffusers into the file's metadata, for
each part of a pipeline under the part's name.
"""

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights.folder import read_json

PREFIX = "base_model.model."
"""What peft writes before the name of every module."""

_METADATA = "lora_adapter_metadata"
# What each kind of adapter calls its alpha.
_ALPHA = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}


def read_configs(
    path: Path, keys: Iterable[str], metadata: Mapping[str, str], parts: Iterable[str]
) -> dict[str, Mapping[str, Any]]:
    """The configuration of each part of which the adapter in `path` has one.

    keys, metadata: of that file. Warns of a file of peft's without its adapter_config.json; raises
    SdjaxError for configurations that are not peft's.
    """
    if _METADATA in metadata:
        try:
            settings = json.loads(metadata[_METADATA])
        except (ValueError, RecursionError) as error:
            raise SdjaxError(f"its {_METADATA} is not JSON: {error}") from error
        if not isinstance(settings, dict):
            raise SdjaxError(f"its {_METADATA} must be an object, is a {type(settings).__name__}")
        if "r" in settings:  # of one network, saved alone
            return dict.fromkeys(parts, settings)
        configs = {
            part: {
                key.removeprefix(f"{part}."): value
                for key, value in settings.items()
                if key.startswith(f"{part}.")
            }
            for part in parts
        }
        return {part: config for part, config in configs.items() if config}
    keys = tuple(keys)
    if not any(k.startswith(PREFIX) for k in keys) or any(k.endswith(".alpha") for k in keys):
        return {}
    beside = path.with_name("adapter_config.json")
    if beside.is_file():
        return dict.fromkeys(parts, read_json(beside))
    warnings.warn(
        f"{path} was saved by peft, whose adapter_config.json says how strong it is: there is none "
        "in its folder, so that alpha is taken to be the rank",
        stacklevel=4,
    )
    return {}


def settings(config: Mapping[str, Any], module: str) -> dict[str, np.ndarray]:
    """What a configuration adds to a module's factors: `scale`, or of rotations `terms`.

    Raises SdjaxError for a configuration that is not one of the kinds that are read.
    """
    if config.get("peft_type") != "OFT":
        return {"scale": np.float32(scale(config, module))}
    if config.get("coft") is not False:
        raise SdjaxError("its configuration constrains the rotations (coft), which is not read")
    series, terms = config.get("use_cayley_neumann"), config.get("num_cayley_neumann_terms")
    if series is False:
        return {"terms": np.float32(0)}
    if series is not True or type(terms) is not int or not 0 < terms < 100:
        raise SdjaxError(
            "its configuration must say use_cayley_neumann and num_cayley_neumann_terms: found "
            f"{series!r} and {terms!r}"
        )
    return {"terms": np.float32(terms)}


def scale(config: Mapping[str, Any], module: str) -> float:
    """What multiplies the product of a module's factors: alpha / r, or alpha / √r (rsLoRA).

    rsLoRA is Kalajdzievski 2023, arXiv:2312.03732. Raises SdjaxError where that is not said.
    """
    kind = config.get("peft_type", "LORA")
    if kind not in _ALPHA:
        raise SdjaxError(f"it is a {kind} of peft: expected {', '.join(_ALPHA)}, OFT")
    rank = _number(config, "r", "rank_pattern", module)
    alpha = _number(config, _ALPHA[kind], "alpha_pattern", module)
    if rank <= 0:
        raise SdjaxError(f"its configuration gives {module} the rank {rank}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(config: Mapping[str, Any], name: str, patterns: str, module: str) -> float:
    """The setting `name` of a module: the first pattern's that its name ends in, or everyone's."""
    value = config.get(name)
    special = config.get(patterns) or {}
    try:
        for pattern, own in special.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                value = own
                break
    except (AttributeError, re.error, OverflowError, RecursionError) as error:
        raise SdjaxError(f"its {patterns} {special!r} does not map patterns to numbers") from error
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise SdjaxError(f"its configuration gives {module} no usable {name}: found {value!r}")
    return value
