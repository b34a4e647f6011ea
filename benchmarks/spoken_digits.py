"""Digits that a trained model speaks, heard by a reader of recordings, over the scale of guidance.

    python -m benchmarks.spoken_digits --model runs/spoken_digits/model --recordings recordings

Writes benchmarks/results/spoken_digits.json: shares with 95 % intervals and each seed's, beside those
of the recordings kept out and of these resynthesised.
"""

import json
from pathlib import Path

import tyro

import sdjax
from benchmarks.common import RESULTS, machine
from sdjax.evaluation import Generation, SpokenDigits, evaluate_digits
from sdjax.parallel import use_compile_cache, use_cpu_devices


def main(
    model: Path = Path("runs/spoken_digits/model"),
    recordings: Path = Path("recordings"),
    scales: tuple[float, ...] = (1.0, 2.0, 4.0),
    steps: int = 30,
    each: int = 5,
    seeds: int = 3,
    epochs: int = 15,
    workdir: Path = Path("runs/spoken_digits/evaluation"),
    save: bool = True,
):
    """Measures a model at each scale of guidance.

    model: as configs/spoken_digits.py leaves it. recordings: the data set's folder. scales: of
    guidance. steps: of sampling. each, seeds, epochs: as `sdjax evaluate spoken-digits` has them.
    workdir: where sheets and sounds go. save: write the results.
    """
    use_cpu_devices()
    use_compile_cache()
    speaker, rows = sdjax.StableDiffusion.from_pretrained(model), []
    for scale in scales:
        config = SpokenDigits(
            str(recordings), each, seeds, epochs, out=str(workdir / f"guidance-{scale:g}"),
            generation=Generation(steps=steps, guidance_scale=scale),
        )  # fmt: skip
        found = evaluate_digits(speaker, config, str(model))
        rows.append({"guidance_scale": scale, **{k: v for k, v in found.items() if k != "files"}})
    if save:
        written = {"benchmark": "spoken_digits", "machine": machine(), "results": rows}
        place = RESULTS / "spoken_digits.json"
        place.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(place)
    return rows


if __name__ == "__main__":
    tyro.cli(main)
