"""Settings as the text that A1111's web interface keeps in a picture, which galleries read.

    prompt
    Negative prompt: …
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, …
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from sdjax.diffusion.samplers import names
from sdjax.errors import SdjaxError
from sdjax.text.grammar import NETWORK

SAMPLERS = {
    "ddim": "DDIM", "ddpm": "DDPM", "plms": "PLMS", "euler": "Euler", "euler_a": "Euler a",
    "heun": "Heun", "lms": "LMS", "dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M", "dpmpp_sde": "DPM++ SDE", "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE", "unipc": "UniPC", "lcm": "LCM",
}  # fmt: skip
"""Ours -> theirs, where they correspond."""
SCHEDULES = {
    "karras": "Karras", "exponential": "Exponential", "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform", "kl_optimal": "KL Optimal", "ays_sd": "Align Your Steps",
    "simple": "Simple", "beta": "Beta",
}  # fmt: skip
"""Of our `sigmas` -> their schedule types."""
UPSCALERS = {
    "latent": "Latent", "latent-bicubic": "Latent (bicubic)", "latent-nearest": "Latent (nearest)",
    "lanczos": "Lanczos", "nearest": "Nearest",
}  # fmt: skip
"""Of our `hires_by` -> theirs."""
NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_LEAST = 3  # pairs that the last line has, or it is one of the prompt
_NUMBERS = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", lambda text: int(text) - 1),
    "Denoising strength": ("strength", float),
    "Eta": ("eta", float),
    "Eta DDIM": ("eta", float),
    "Hires upscale": ("hires", float),
    "Hires steps": ("hires_steps", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
    "Mask blur": ("mask_blur", float),
    "Masked area padding": ("only_masked", int),
}
_SAYS_NOTHING = {"Version", "VAE", "VAE hash"}
_MASKED = "Only masked"
_SAY_NOTHING = {("RNG", "CPU"), ("Tiling", "False"), ("Inpaint area", _MASKED)}


def written(settings: Mapping[str, object], size: tuple[int, int], model: Mapping[str, str]) -> str:
    """The text of a picture.

    settings: `generate`'s arguments, of this one picture; those that are None or without a place in
    the text are left out. size: height and width in pixels. model: its "name" and, where it is
    known, its "hash".
    """
    sampler = settings.get("sampler")
    # Theirs is one number: of the second pass, where there is one.
    strength = settings.get("hires_strength" if settings.get("hires") else "strength")
    refined, way = settings.get("refiner"), settings.get("hires_by") or "latent"
    pairs = {
        "Steps": settings.get("steps"),
        "Sampler": SAMPLERS.get(sampler, sampler),
        "Schedule type": SCHEDULES.get(settings.get("sigmas"), settings.get("sigmas")),
        "CFG scale": _short(settings.get("guidance_scale")),
        "Seed": settings.get("seed"),
        "Size": f"{size[1]}x{size[0]}",
        "Model hash": model.get("hash"),
        "Model": model.get("name"),
        "Variation seed": settings.get("variation_seed"),
        "Variation seed strength": _short(settings.get("variation_strength")),
        "Denoising strength": _short(strength),
        "Clip skip": settings["clip_skip"] + 1 if settings.get("clip_skip") else None,
        "Eta": _short(settings.get("eta")),
        "Mask blur": _short(settings.get("mask_blur")),
        "Inpaint area": None if settings.get("only_masked") is None else _MASKED,
        "Masked area padding": settings.get("only_masked"),
        "Hires upscale": _short(settings.get("hires")),
        "Hires steps": settings.get("hires_steps"),
        "Hires upscaler": UPSCALERS.get(way, way) if settings.get("hires") else None,
        "Refiner": None if refined is None else Path(str(refined)).stem,
        "Refiner switch at": None if refined is None else _short(settings.get("handoff")),
        "Tiling": "True" if settings.get("tile") == "xy" else None,
        "Version": "sdjax",
    }
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(f"{NEGATIVE} {settings['negative_prompt']}")
    lines.append(
        ", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items() if value is not None)
    )
    return "\n".join(lines)


def read(text: str) -> tuple[dict[str, object], dict[str, str]]:
    """(arguments of `generate`, what was not understood) of a text.

    The model's name is among what was not understood, as "Model". Raises SdjaxError where a value
    is not of its kind.
    """
    *lines, last = text.strip().split("\n")
    pairs = {name.strip(): _unquoted(value) for name, value in _PAIR.findall(last)}
    if len(pairs) < _LEAST:
        lines, pairs = [*lines, last], {}
    prompt, negative = [], None
    for line in lines:
        if line.strip().startswith(NEGATIVE):
            negative, line = [], line.strip().removeprefix(NEGATIVE).strip()
        (prompt if negative is None else negative).append(line)
    said, left = ["\n".join(text or ()) for text in (prompt, negative)], {}
    if named := [name for text in said for name in NETWORK.findall(text)]:
        left["files named in the prompt"] = " ".join(named)
    said = [NETWORK.sub("", text).strip() for text in said]
    settings: dict[str, object] = {"prompt": said[0]}
    if said[1]:
        settings["negative_prompt"] = said[1]
    for name, value in pairs.items():
        try:
            if not _taken(name, value, settings):
                left[name] = value
        except ValueError:
            raise SdjaxError(f"{name} in a picture's text is no number: {value!r}") from None
    if "hires" in settings and "strength" in settings:
        settings["hires_strength"] = settings.pop("strength")
    if "Hires upscaler" in left:
        del settings["hires_by"]
    schedule = settings.pop("schedule", "")
    schedule = "" if "Schedule type" in left else schedule
    if "sampler" in settings:
        settings["sampler"] = f"{settings['sampler']} {schedule}".strip()
    return settings, left


def _taken(name: str, value: str, settings: dict[str, object]) -> bool:
    """Whether a pair was understood, and is among the settings now."""
    if name in _NUMBERS:
        ours, kind = _NUMBERS[name]
        settings[ours] = kind(value)
    elif name == "Sampler":
        settings["sampler"] = value
    elif name == "Schedule type":
        settings["schedule"] = value
        return re.sub(r"[\s-]+", "_", value.lower()) in names.SCHEDULES
    elif name == "Size":
        width, height = map(int, value.split("x"))
        settings |= {"height": height, "width": width}
    elif name == "Hires upscaler":
        ways = {theirs: ours for ours, theirs in UPSCALERS.items()}
        settings["hires_by"] = ways.get(value)
        return value in ways
    elif name == "Tiling" and value == "True":
        settings["tile"] = "xy"
    else:
        return name in _SAYS_NOTHING or (name, value) in _SAY_NOTHING
    return True


def _short(value) -> str | None:
    return None if value is None else f"{value:.10g}"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text


def _unquoted(value: str) -> str:
    try:
        return json.loads(value) if value[:1] == '"' else value.strip()
    except json.JSONDecodeError:
        return value
