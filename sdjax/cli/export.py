"""`sdjax export`: a model for another runtime."""

from pathlib import Path
from typing import Literal

import tyro

from sdjax.errors import SdjaxError
from sdjax.folders import check_local

from .common import MODEL_WORDS, known_words, parsed

_OPTIONS = ("dtype", "config", "sampler", "steps")


def export(
    model: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    target: Literal["jax", "litert", "iree", "onnx"],
    dtype: Literal["float32", "int8"] = "float32",
    platform: str | None = None,
    batch: Literal[1, 2] = 2,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    spacing: Literal["leading", "trailing", "linspace"] | None = None,
    sigmas: str | None = None,
    guidance_scale: float | None = None,
    config: Path | None = None,
) -> None:
    """Turn a model into programs for another runtime: a phone's, or one of a server.

    sdjax export MODEL OUT --target litert --dtype int8

    OUT gets the text encoder, the U-Net and the decoder as a program each, and export.json with the
    tokenizer and the sampler as a table, a row of numbers a step. sdjax.export.runner runs them by
    NumPy and the target's runtime alone.

    Args:
        model: A diffusers folder, a .safetensors or .ckpt file, or a hub id.
        out: A folder to be made. It must not exist.
        target: jax is serialised StableHLO with its parameters beside it; litert is for phones;
            iree is compiled for a processor; onnx needs an environment of its own, see docs/export.md.
        dtype: Of the weights; int8 is for litert.
        platform: Of jax: cpu, gpu or tpu. Of iree: host or android-arm64.
        batch: Predictions that a call of the U-Net makes: 2 are both of a guided step, 1 takes less
            memory.
        height: In pixels; the size the model was trained at where not given.
        width: In pixels; the size the model was trained at where not given.
        steps: Sampling steps of the table; 30 where not given.
        sampler: As of sample; the model's own where not given.
        spacing: How the timesteps are laid out; the sampler's own way where not given.
        sigmas: Noise levels: karras, exponential, beta, …; the sampler's own where not given.
        guidance_scale: How much the prompt counts; the model's own where not given.
        config: Of a single file, if its networks are of other sizes than the published: a diffusers
            folder of the same sizes.
    """
    from sdjax.export import folder, writers
    from sdjax.pipeline.model.files import read_model
    from sdjax.pipeline.stable_diffusion import StableDiffusion

    check_local(out)
    if out.exists():
        raise SdjaxError(f"{out} exists already: remove it or choose another name")
    writers.check(target, dtype, platform)
    found = read_model(model, config=config)
    loaded = StableDiffusion.from_model(found, "float32", model)
    asked = {
        "height": height, "width": width, "steps": steps, "sampler": sampler, "spacing": spacing,
        "sigmas": sigmas, "guidance_scale": guidance_scale,
    }  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    folder.export(
        loaded, out, target, dtype=dtype, batch=batch, platform=platform, told=print, **asked
    )
    print(out)


def run(arguments: list[str], program: str) -> int:
    """Reads the options, and exports."""
    parsed(
        export, arguments, program, words=known_words(_OPTIONS, MODEL_WORDS), required=["--target"]
    )
    return 0
