"""The shipped model exported: sizes, times, distance from JAX, and what it draws.

    python -m benchmarks.export litert-int8 --source folder:pictures-of-emoji

Each of the targets, "jax", "litert", "litert-int8", "iree", "iree-android", "onnx", is exported
into a temporary folder and opened by `sdjax.export.runner`. With --captions 40 it draws the forty
captions that `evaluate nearest-neighbour` draws, and counts for how many of them the nearest
picture of the source is the right one. The rows of other targets stay in the JSON, since a target may need
an environment of its own.
"""

import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import sdjax
from benchmarks.common import RESULTS, machine
from sdjax.data import DataConfig
from sdjax.evaluation.known import known_pictures
from sdjax.evaluation.nearest import nearest_rate
from sdjax.evaluation.sheets import to_uint8
from sdjax.export import folder as exports
from sdjax.export.layout import PROGRAMS, UNET
from sdjax.export.programs import programs
from sdjax.export.runner import Runner

CALLS = 20
NAME = "export"


def options_of(target: str) -> dict[str, str]:
    """Arguments of `export` for a name of a row."""
    name, _, rest = target.partition("-")
    more = {"int8": {"dtype": "int8"}, "android": {"platform": "android-arm64"}, "": {}}[rest]
    return {"target": name, **more}


def inputs_of(model, settings):
    """Something for each program, and what JAX makes of it."""
    rng, made = np.random.default_rng(0), {}
    for name, one in programs(model, settings["latents"], settings["batch"]).items():
        given = {
            key: rng.standard_normal(spec.shape, np.float32) for key, spec in one.inputs.items()
        }
        if "ids" in given:
            given["ids"] = model.tokenizers[0].encode("penguin")
        if name == UNET:
            given["timestep"] = np.float32([981, 20])
        out = jax.jit(one.function)(one.params, *given.values())
        made[name] = given, dict(zip(one.outputs, map(np.asarray, out), strict=True))
    return made


def measure(model, target, steps, captions, known):
    """The figures of a row."""
    with tempfile.TemporaryDirectory() as place:
        out, started = Path(place) / "out", time.perf_counter()
        settings = exports.export(model, out, **options_of(target), steps=steps)
        row = {"export_s": round(time.perf_counter() - started, 1)}
        row["mb"] = {
            name: round(sum(f.stat().st_size for f in out.glob(f"{name}.*")) / 1e6, 2)
            for name in PROGRAMS
        }
        row["mb"]["all"] = round(sum(f.stat().st_size for f in out.iterdir()) / 1e6, 2)
        if target == "iree-android":  # for another processor
            return row
        run, row["difference"] = Runner(out), {}
        for name, (given, expected) in inputs_of(model, settings).items():
            made = run.programs[name](**given)
            row["difference"][name] = max(
                float(np.abs(made[key] - expected[key]).max()) for key in expected
            )
            times = []
            for _ in range(CALLS):
                begun = time.perf_counter()
                run.programs[name](**given)
                times.append(time.perf_counter() - begun)
            row.setdefault("ms", {})[name] = round(1e3 * float(np.median(times)), 2)
        begun = time.perf_counter()
        run("penguin")
        row["picture_s"] = round(time.perf_counter() - begun, 2)
        if captions:
            made = to_uint8(np.stack([run(c, seed=i) for i, c in enumerate(captions)]))
            row["right"] = int(nearest_rate(made, captions, *known).right.sum())
            row["captions"] = len(captions)
        return row


def main(
    targets: tyro.conf.Positional[tuple[str, ...]] = ("jax",), /, captions: int = 0,
    source: str = "emoji", steps: int = 30, save: bool = True,
) -> dict:  # fmt: skip
    """Exports, measures, prints and writes.

    captions: to be drawn of each target. source: "emoji", or "folder:PATH" with its pictures.
    """
    model = sdjax.StableDiffusion.from_pretrained(sdjax.EMOJI)
    asked, known = [], None
    if captions:
        names = list(model.captions)
        asked = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:captions]]
        pictures, called = known_pictures(DataConfig(source=source, image_size=64))
        chosen = [i for i, name in enumerate(called) if name in set(names)]
        known = pictures[chosen], [called[i] for i in chosen]
    path = RESULTS / f"{NAME}.json"
    written = json.loads(path.read_text()) if path.exists() else {"benchmark": NAME, "rows": {}}
    for target in targets:
        row = measure(model, target, steps, asked, known)
        written["rows"][target] = {"machine": machine(), "steps": steps, **row}
        show({target: written["rows"][target]})
    if save:
        path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    return written


def show(rows):
    """Prints a table."""
    table = Table()
    for column in ("target", "MB", "export s", "difference", "U-Net ms", "picture s", "right"):
        table.add_column(column)
    for name, row in rows.items():
        far = max(row["difference"].values()) if "difference" in row else None
        table.add_row(
            name, str(row["mb"]["all"]), str(row["export_s"]), "" if far is None else f"{far:.1e}",
            str(row.get("ms", {}).get(UNET, "")), str(row.get("picture_s", "")),
            f"{row['right']} of {row['captions']}" if "right" in row else "",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    tyro.cli(main)
