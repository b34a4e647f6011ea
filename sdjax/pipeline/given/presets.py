"""Settings by name for models that were distilled to few steps, as those who published them say."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from sdjax.diffusion.samplers import SAMPLERS, canonical_name
from sdjax.errors import SdjaxError


@dataclasses.dataclass(frozen=True)
class Preset:
    """What `generate` takes where it is not told otherwise, and who says so."""

    steps: int
    sampler: str
    guidance_scale: float
    source: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_TRAILING = {"spacing": "trailing"}
_LCM = "arXiv 2310.04378 and the model card of SimianLuo/LCM_Dreamshaper_v7"
_LCM_LORA = "arXiv 2311.05556 and the model cards of latent-consistency/lcm-lora-…"
_LIGHTNING = "arXiv 2402.13929 and the model card of ByteDance/SDXL-Lightning"
_HYPER = "arXiv 2404.13686 and the model card of ByteDance/Hyper-SD"
_TURBO = "arXiv 2311.17042 and the model cards of stabilityai/sd-turbo and sdxl-turbo"
_DMD2 = "arXiv 2405.14867 and the model card of tianweiy/DMD2"

PRESETS = {
    "lcm": Preset(4, "lcm", 8.0, _LCM),
    "lcm-lora": Preset(4, "lcm", 1.0, _LCM_LORA),
    "turbo": Preset(1, "euler_a", 1.0, _TURBO, _TRAILING),
    # The one-step network alone predicts the picture itself.
    "lightning-1": Preset(
        1, "euler", 1.0, _LIGHTNING, {**_TRAILING, "prediction_type": "x_0"}
    ),
    **{f"lightning-{n}": Preset(n, "euler", 1.0, _LIGHTNING, _TRAILING) for n in (2, 4, 8)},
    # The LoRA for any number of steps, and the whole U-Net that takes one.
    "hyper-1": Preset(1, "tcd", 1.0, _HYPER, {"eta": 1.0}),
    "hyper-1-unet": Preset(1, "lcm", 1.0, _HYPER, {"timesteps": (800,)}),
    **{f"hyper-{n}": Preset(n, "ddim", 1.0, _HYPER, _TRAILING) for n in (2, 4, 8)},
    # With guidance, of which the card says 5 to 8.
    **{f"hyper-{n}-cfg": Preset(n, "ddim", 5.0, _HYPER, _TRAILING) for n in (8, 12)},
    "dmd2-1": Preset(1, "lcm", 1.0, _DMD2, {"timesteps": (399,)}),
    "dmd2-4": Preset(4, "lcm", 1.0, _DMD2, {"timesteps": (999, 749, 499, 249)}),
}


def known_preset(name: str, value: object) -> str:
    """The check of the argument `preset`."""
    if not isinstance(value, str) or value not in PRESETS:
        near = difflib.get_close_matches(str(value), PRESETS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SdjaxError(f"no {name} {value!r}: {hint}there are {', '.join(PRESETS)}")
    return value


def filled(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments steps, sampler, guidance_scale and options, where they are None or left out as
    the preset has them.

    Options go with the preset's sampler; another sampler takes those of them that it has.
    """
    own = PRESETS[preset]
    made = {
        name: getattr(own, name) if given[name] is None else given[name]
        for name in ("steps", "sampler", "guidance_scale")
    }
    sampler = SAMPLERS[canonical_name(made["sampler"], SAMPLERS)[0]]
    taken = {"prediction_type"}.union(*sampler.option_names)
    options = {name: value for name, value in own.options.items() if name in taken}
    if "timesteps" in options and made["steps"] != own.steps:
        del options["timesteps"]  # as many as the preset's steps
    return {**made, "options": {**options, **given["options"]}}
