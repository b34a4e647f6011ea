"""How accuracy grows with training: every kept checkpoint of a `shapes` recipe, read by the oracle.

Captions are different ones, half from training and half kept out of it. "shapes and colours" is the
share of pictures with the right number of objects, all of the right shape and colour; "wholly
right" asks for size, background and relation too. Training is counted in pictures seen, which is
the same on every machine; the run's log has their rate.
Writes results/accuracy_curve.json and docs/accuracy_curve.png.

    python main.py train --config configs/shapes_pairs.py --workdir runs/shapes_pairs
    python -m benchmarks.accuracy_curve
"""

import json
from pathlib import Path

import rich
import tyro

from benchmarks.common import RESULTS, machine
from sdjax.errors import SdjaxError
from sdjax.parallel import use_cpu_devices

DOCS = Path(__file__).parent.parent / "docs"
MEASURES = {
    "all": "wholly right",
    "shape_and_colour": "shapes and colours",
    "background": "background",
    "size": "sizes",
    "relation": "relation",
}
SPLITS = {"train": "-", "heldout": "--"}


def measure(models, captions, config, batch):
    """A row for each (step, seconds, model): accuracies of each split's captions.

    batch: pictures that training saw in a step.
    """
    from sdjax.evaluation.generation import generate
    from sdjax.evaluation.shapes_accuracy import accuracy

    rows = []
    for step, _, model in models:
        row = {"step": step, "pictures": step * batch}
        for split, texts in captions.items():
            found = accuracy(generate(model, texts, config), texts)
            row[split] = {name: found[name] for name in MEASURES}
        rich.print(row)
        rows.append(row)
    return rows


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(9, 4))
    pictures = [row["pictures"] / 1000 for row in rows]
    for i, (name, label) in enumerate(MEASURES.items()):
        for split, line in SPLITS.items():
            values = [100 * row[split][name] for row in rows]
            text = label if split == "train" else None
            panel.plot(pictures, values, line, color=f"C{i}", marker="o", ms=3, label=text)
    panel.plot([], [], "--", color="grey", label="captions kept out of training")
    panel.set(xlabel="pictures seen, thousands", ylabel="captions, %", ylim=(0, 101))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(
    workdir: str = "runs/shapes_pairs",
    config: str = "configs/shapes_pairs.py",
    captions: int = 128,
    guidance_scale: float = 3.0,
    save: bool = True,
):
    """Measures, prints and writes. captions: different ones of each split."""
    use_cpu_devices()
    from sdjax.evaluation.generation import Generation
    from sdjax.evaluation.shapes_accuracy import shapes_captions
    from sdjax.training import kept_models, load_config

    recipe = load_config(config)
    texts = {split: shapes_captions(captions, recipe.data.objects, split) for split in SPLITS}
    generation = Generation(guidance_scale=guidance_scale)
    models = kept_models(recipe, workdir)
    rows = measure(models, texts, generation, recipe.diffusion.images_per_step)
    if save:
        RESULTS.mkdir(exist_ok=True)
        written = {
            "benchmark": "accuracy_curve", "machine": machine(), "config": config,
            "captions": captions, "guidance_scale": guidance_scale, "rows": rows,
        }  # fmt: skip
        (RESULTS / "accuracy_curve.json").write_text(json.dumps(written, indent=1) + "\n")
        plot(rows, DOCS / "accuracy_curve.png")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except SdjaxError as error:
        raise SystemExit(f"error: {error}") from None
