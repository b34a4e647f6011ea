"""A model exported into a folder: its three programs, and `export.json` with all the rest."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.export import recipe, writers
from sdjax.export.layout import PROGRAMS, SETTINGS, SUFFIXES, VERSION
from sdjax.export.programs import programs
from sdjax.folders import check_writable
from sdjax.pipeline.plans.request import Request
from sdjax.version import __version__


def export(
    model,
    folder: Path,
    target: str,
    *,
    dtype: str = "float32",
    batch: int = 2,
    platform: str | None = None,
    told=lambda line: None,
    **asked: Any,
) -> dict[str, Any]:
    """Writes a `StableDiffusion` for another runtime; gives what `export.json` holds.

    target: "jax", "litert", "iree" or "onnx". dtype: "float32", or "int8" for LiteRT's weights.
    batch: predictions of a call of the U-Net, 2 for both of a guided step, 1 where a device has
    little memory. platform: what jax ("cpu", "gpu", "tpu") or iree ("host", "android-arm64")
    compile for. told: a function of a line for each program. asked: height, width, steps, sampler
    and its options, as `generate` takes them.

    Raises SdjaxError, before anything is written, for what cannot be exported.
    """
    platform = writers.check(target, dtype, platform)
    if batch not in (1, 2):
        raise SdjaxError(f"batch must be 1 or 2, got {batch}")
    planned = model.planned(Request("", **_arguments(asked)))
    made = programs(model, planned.shape, batch)
    for name in PROGRAMS:
        writers.check_size(target, name, made[name])
    guided = model.planned(Request("", **{**_arguments(asked), "guidance_scale": 2.0}))
    settings = {
        "version": VERSION,
        "sdjax": __version__,
        "target": target,
        "dtype": dtype,
        "batch": batch,
        "size": list(planned.size),
        "latents": list(planned.shape),
        "guidance_scale": float(planned.guidance_scale[0]),
        "distilled": planned.distilled,
        "zero_negative": model.zero_negative,
        # Of the negative prompt and the prompt.
        "time_ids": None if guided.time_ids is None else np.asarray(guided.time_ids).tolist(),
        "table": recipe.rows_of(planned.tables[0]),
        "programs": {
            name: {
                "file": name + SUFFIXES[target],
                "inputs": {
                    key: {"shape": list(one.shape), "dtype": np.dtype(one.dtype).name}
                    for key, one in made[name].inputs.items()
                },
                "outputs": list(made[name].outputs),
            }
            for name in PROGRAMS
        },
        "tokenizers": [recipe.tokenizer_of(one) for one in model.tokenizers],
    }
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        started, path = time.perf_counter(), folder / settings["programs"][name]["file"]
        writers.write(target, name, made[name], path, dtype, platform)
        files = path, path.with_suffix(".safetensors")
        size = sum(one.stat().st_size for one in files if one.exists())
        seconds = time.perf_counter() - started
        told(f"{path.name}: {size / 1e6:.1f} MB in {seconds:.1f} s")
    text = json.dumps(settings, ensure_ascii=False)
    (folder / SETTINGS).write_text(text, encoding="utf-8")
    return settings


def _arguments(asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `Request`, the sampler's own as its options."""
    from sdjax.pipeline.plans.request import ARGUMENTS

    names = {name: value for name, value in asked.items() if name in ARGUMENTS}
    return {**names, "options": {k: v for k, v in asked.items() if k not in names}}
