"""What training on top of a model gives: the recipes on the shipped model, measured and drawn.

Each training is one command line of a recipe in configs/, run as a user runs it, on pictures that
`benchmarks.finetune_data` makes of the emoji:

- lora: a style, two colours, from twenty emoji; judged by forty others.
- dreambooth, dreambooth-alone: an emoji that the model never saw, from four pictures, with and
  without pictures of its class; judged by sixteen seeds, and by forty captions known before.
- word: the same emoji as a learned word.
- controlnet: outlines, of emoji turned as no caption says; judged by the outlines of what is made.
- inpaint: a U-Net of further channels beside the plain model's way to repaint.

    python -m benchmarks.finetune                # all, about an hour and a half on two cores
    python -m benchmarks.finetune lora --source folder:pictures-of-emoji

Writes results/finetune.json, pictures docs/images/finetune-*.webp and the table of
docs/finetuning.md. A training that is finished in the work folder is only measured again.
"""

import json
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from scipy import ndimage

from benchmarks import finetune_data as data
from benchmarks.common import RESULTS, machine
from sdjax import EMOJI, Control, StableDiffusion
from sdjax.evaluation.generation import Generation, generate
from sdjax.evaluation.grids import labelled_grid
from sdjax.evaluation.nearest import nearest, nearest_rate
from sdjax.evaluation.reconstruction import reconstruct
from sdjax.evaluation.sheets import sheet, to_uint8
from sdjax.parallel import use_cpu_devices

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BATCH = 4  # pictures at once, of all that is measured: one program each
SEEDS = 16
# Name: recipe, folder of its pictures, what else the command line says.
TRAININGS = {
    "lora": ("lora", "style", "--diffusion.steps 1000 --diffusion.batch-size 16 "
             "--diffusion.optimizer.learning-rate 2e-3"),
    "dreambooth-alone": ("lora", "subject", '--diffusion.captions.prompt "sks bear" '
                         "--diffusion.steps 1000 --diffusion.batch-size 16 "
                         "--diffusion.optimizer.learning-rate 2e-3"),
    "dreambooth": ("dreambooth", "subject", '--diffusion.captions.prompt "sks bear" '
                   '--diffusion.prior.prompt bear --diffusion.prior.count 16 '
                   "--diffusion.steps 400 --diffusion.batch-size 8 "
                   "--diffusion.optimizer.learning-rate 2e-3"),
    "controlnet": ("controlnet", "views", "--diffusion.beside {work}/edges "
                   "--diffusion.steps 1000 --diffusion.batch-size 16 "
                   "--diffusion.optimizer.learning-rate 1e-3"),
    "inpaint": ("inpaint", "views", "--diffusion.steps 1000 --diffusion.batch-size 16 "
                "--diffusion.optimizer.learning-rate 5e-4"),
    "word": ("learned_word", "subject", '--diffusion.adaptation.word "<teddy>" '
             '--diffusion.adaptation.initial bear --diffusion.captions.prompt "<teddy>" '
             "--diffusion.adaptation.vectors 4 --diffusion.steps 600 --diffusion.batch-size 4 "
             "--diffusion.optimizer.learning-rate 2e-2"),
}  # fmt: skip


class Bench:
    """The pictures, the shipped model, and the work folder that trainings are done in."""

    def __init__(self, source: str, work: Path):
        self.work = work
        self.emoji = data.emoji(source)
        self.model = StableDiffusion.from_pretrained(EMOJI)
        self.known = list(self.model.captions)
        # The forty that `evaluate nearest-neighbour` draws.
        drawn = np.random.default_rng(0).permutation(len(self.known))
        self.asked = [self.known[i] for i in drawn[:40]]
        rest = [caption for caption in self.known if caption not in self.asked]
        self.styled = [rest[i] for i in np.random.default_rng(1).permutation(len(rest))[:20]]

    def pictures(self, captions):
        """The emoji of these captions, uint8 [N, 64, 64, 3]."""
        return np.stack([self.emoji[caption] for caption in captions])

    def made(self, captions, model=None):
        """What a model makes of captions, with the seeds 0, 1, …; uint8."""
        return generate(model or self.model, captions, Generation(batch_size=BATCH))

    def made_with(self, captions, **options):
        """The same with further arguments of `generate`, lists of one item a caption; uint8."""
        pictures = []
        for start in range(0, len(captions), BATCH):
            part = slice(start, start + BATCH)
            given = {k: v[part] if isinstance(v, list) else v for k, v in options.items()}
            controls = given.pop("control", None)
            if controls is not None:
                given["controls"] = [given.pop("network")(controls)]
            seeds = list(range(start, start + len(captions[part])))
            pictures.append(self.model.generate(
                captions[part], seed=seeds, output="numpy", progress=False, **given
            ))
        return to_uint8(np.concatenate(pictures))

    def right(self, made, captions, known, called):
        """How many of these pictures have their nearest known one called as their caption."""
        return int(nearest_rate(made, captions, known, called).right.sum())

    def write_pictures(self, name):
        """The folder that a training reads."""
        folder = self.work / name
        if name == "style":
            pictures = [data.duotone(self.emoji[caption]) for caption in self.styled]
            data.write(folder, pictures, self.styled)
        elif name == "subject":
            data.write(folder, data.views(self.emoji[data.SUBJECT]))
        else:
            pictures, captions = data.turned_views(self.emoji, self.known)
            data.write(folder, pictures, captions)
            data.write(self.work / "edges", [data.edges(picture) for picture in pictures])
        return folder

    def command(self, name):
        """The command line of a training, without what starts it."""
        recipe, folder, options = TRAININGS[name]
        return [
            "train", "--config", f"configs/{recipe}.py", "--model", "sdjax/assets/emoji",
            "--workdir", str(self.work / name), "--data.source", f"folder:{self.work / folder}",
            *shlex.split(options.format(work=self.work)), "--diffusion.sheet-every", "0",
        ]  # fmt: skip

    def train(self, name) -> dict:
        """Trains where there is no result yet: the command, minutes, and those of all cores."""
        command, told = self.command(name), self.work / name / "finetune.json"
        if told.exists():
            found = json.loads(told.read_text())
            if found["command"] != shlex.join(command):
                raise SystemExit(f"{told.parent} is of another command: move it away")
            return found
        self.write_pictures(TRAININGS[name][1])
        print("sdjax", shlex.join(command), flush=True)
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([sys.executable, "-m", "sdjax", *command], cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        lines = (self.work / name / "diffusion" / "metrics.jsonl").read_text().splitlines()
        found = {
            "command": shlex.join(command),
            "minutes": round((time.monotonic() - begun) / 60, 1),
            "core_minutes": round(spent / 60, 1),
            "last": json.loads(lines[-1]),
        }
        told.write_text(json.dumps(found, indent=1) + "\n")
        return found


def measure_lora(bench):
    """Forty emoji that are not among the twenty, without and with the style."""
    model, asked = bench.model, bench.asked
    truth = data.duotone(bench.pictures(asked))
    styled = data.duotone(bench.pictures(bench.known))
    rows = {"shipped": bench.made(asked)}
    name = model.load_lora(bench.work / "lora" / "lora.safetensors", 0.5)
    rows["LoRA, 0.5"] = bench.made(asked)
    model.set_lora_weights(**{name: 1.0})
    rows["LoRA"] = bench.made(asked)
    model.unload()
    limit = reconstruct(model.vae, model.params["vae"], truth, BATCH)
    figures = {
        label: {"off_style": data.off_style(made), "right": bench.right(
            made, asked, styled, bench.known)} for label, made in rows.items()
    }
    figures["off_style_of_the_autoencoder"] = data.off_style(limit)
    picture("lora", rows | {"the style itself": truth}, asked[:8])
    save(sheet(data.duotone(bench.pictures(bench.styled)), columns=10), "lora-pictures")
    return figures, [
        ("distance from the style's colours, levels of 255",
         f"{figures['shipped']['off_style']:.1f}", f"{figures['LoRA']['off_style']:.1f}"),
        ("nearest of 509 emoji in the style is the right one, of 40 it was not trained on",
         figures["shipped"]["right"], figures["LoRA"]["right"]),
    ]


def subject(bench, prompt, kept=True):
    """The new emoji of sixteen seeds, the class, and forty captions known before."""
    captions = list(bench.emoji)
    others = data.views(bench.emoji[data.SUBJECT])[1:]
    known = np.concatenate([bench.pictures(captions), np.stack(others)])
    called = captions + [data.SUBJECT] * len(others)
    new = bench.made([prompt] * SEEDS)
    bear = bench.made(["bear"] * SEEDS)
    old = bench.made(bench.asked) if kept else None
    core = bench.pictures(bench.known)
    figures = {
        "new": bench.right(new, [data.SUBJECT] * SEEDS, known, called),
        "class": bench.right(bear, ["bear"] * SEEDS, core, bench.known),
        "old": bench.right(old, bench.asked, core, bench.known) if kept else None,
        "nearest": [called[i] for i in nearest(new, known)[:, 0]],
    }
    return figures, new, bear


def rows_of_subject(before, after):
    """For the table."""
    return [
        (f"the new emoji, nearest of all emoji for {SEEDS} seeds", before["new"], after["new"]),
        (f"“bear” is still the bear, of {SEEDS} seeds", before["class"], after["class"]),
        ("captions known before that are still right, of 40", before["old"], after["old"]),
    ]


def measure_dreambooth(bench, name="dreambooth"):
    """The subject with the LoRA."""
    before, plain, bear = subject(bench, "sks bear")
    bench.model.load_lora(bench.work / name / "lora.safetensors")
    after, new, other = subject(bench, "sks bear")
    bench.model.unload()
    picture(name, {"“sks bear”, shipped": plain, "“sks bear”": new,
                   "“bear”, shipped": bear, "“bear”": other}, [f"seed {i}" for i in range(8)])
    return {"shipped": before, "trained": after}, rows_of_subject(before, after)


def measure_word(bench):
    """The subject by the learned word; the model itself is as it was."""
    before, plain, _ = subject(bench, "teddy bear")
    shipped, bench.model = bench.model, StableDiffusion.from_pretrained(EMOJI)
    bench.model.load_textual_inversion(bench.work / "word" / "word.safetensors")
    after, new, _ = subject(bench, "<teddy>")
    bench.model = shipped
    picture("word", {"“teddy bear”, shipped": plain, "“<teddy>”": new},
            [f"seed {i}" for i in range(8)])
    return {"shipped": before, "trained": after}, rows_of_subject(before, after)


def agreement(made, wanted):
    """How edges agree with a control picture's, within one pixel: precision, recall, and F1."""
    scores = []
    for picture, control in zip(made, wanted, strict=True):
        own, theirs = data.edges(picture)[..., 0] > 0, control[..., 0] > 0
        wide = [ndimage.binary_dilation(e, np.ones((3, 3))) for e in (own, theirs)]
        precision = (own & wide[1]).sum() / max(own.sum(), 1)
        recall = (theirs & wide[0]).sum() / max(theirs.sum(), 1)
        both = precision + recall
        scores.append((precision, recall, 2 * precision * recall / both if both else 0))
    return dict(zip(("precision", "recall", "f1"), map(float, np.mean(scores, 0)), strict=True))


def measure_controlnet(bench):
    """Forty emoji turned otherwise than in training, without and with their outlines."""
    asked = bench.asked
    truth = np.stack(data.turned_views(bench.emoji, asked, count=1, upright=False, seed=1)[0])
    wanted = np.stack([data.edges(picture) for picture in truth])
    network = Control.from_pretrained(bench.work / "controlnet" / "controlnet")
    controls = [Image.fromarray(edge) for edge in wanted]
    rows = {"without": bench.made_with(asked)}
    rows["with control"] = bench.made_with(asked, network=network, control=controls)
    rows["without caption"] = bench.made_with([""] * 40, network=network, control=controls)
    rows["autoencoder"] = reconstruct(bench.model.vae, bench.model.params["vae"], truth, BATCH)
    figures = {label: agreement(made, wanted) for label, made in rows.items()}
    picture("controlnet", {
        "outlines": wanted, "without": rows["without"], "with": rows["with control"],
        "with, no caption": rows["without caption"],
    }, asked[:8])  # fmt: skip
    return figures, [("agreement of edges within one pixel (F1)",
                      f"{figures['without']['f1']:.2f}", f"{figures['with control']['f1']:.2f}")]


def measure_inpaint(bench):
    """The middle of forty emoji, turned otherwise than in training, repainted both ways."""
    asked, view = bench.asked, dict(count=1, upright=False, seed=1)
    truth = np.stack(data.turned_views(bench.emoji, asked, **view)[0])
    mask = np.zeros(truth.shape[1:3], np.float32)
    mask[16:48, 16:48] = 1
    trained = StableDiffusion.from_pretrained(bench.work / "inpaint" / "model")
    shipped, rows = bench.model, {}
    for words, captions in (("", asked), (", no caption", [""] * len(asked))):
        for label, model in (("plain", shipped), ("trained", trained)):
            bench.model = model
            rows[label + words] = bench.made_with(
                captions, image=[Image.fromarray(picture) for picture in truth], mask=mask,
                strength=1.0)
    bench.model = shipped
    figures = {label: repainted(made, truth) for label, made in rows.items()}
    left = np.where(mask[..., None] > 0, np.uint8(128), truth)
    picture("inpaint", {"given": left, **rows, "as it was": truth}, asked[:8])
    pairs = [("plain", "trained", "with caption"),
             ("plain, no caption", "trained, no caption", "without")]
    return figures, [
        (f"{what}, {words}", f"{figures[a][key]:.1f}", f"{figures[b][key]:.1f}")
        for key, what in (("error", "difference from the picture, levels of 255"),
                          ("seam", "step over the mask's border beyond the picture's own"))
        for a, b, words in pairs
    ]


def repainted(made, truth):
    """What the middle differs from the picture by (root mean square), and how much larger the
    steps over its border are than the picture's own (mean absolute); levels of 255."""
    made, truth = made.astype(np.float64), truth.astype(np.float64)
    error = np.sqrt(((made - truth)[:, 16:48, 16:48] ** 2).mean())

    def step(x):
        rows = np.abs(x[:, [16, 47], 16:48] - x[:, [15, 48], 16:48])
        columns = np.abs(x[:, 16:48, [16, 47]] - x[:, 16:48, [15, 48]])
        return (rows.mean() + columns.mean()) / 2

    return {"error": float(error), "seam": float(step(made) - step(truth))}


MEASURES = {
    "lora": measure_lora,
    "dreambooth": measure_dreambooth,
    "dreambooth-alone": lambda bench: measure_dreambooth(bench, "dreambooth-alone"),
    "word": measure_word,
    "controlnet": measure_controlnet,
    "inpaint": measure_inpaint,
}


def picture(name, rows, columns):
    """A sheet: the first pictures of each row, enlarged, none picked."""
    def large(one):
        return Image.fromarray(one).resize((104, 104), Image.Resampling.LANCZOS)

    count = len(columns)
    grid = [[large(one) for one in made[:count]] for made in rows.values()]
    save(labelled_grid(grid, columns, list(rows)), name)


def save(image, name):
    image.save(DOCS / "images" / f"finetune-{name}.webp", quality=85, method=6)


def markdown(results):
    """The table, and the commands."""
    lines = ["| training | measured | shipped | trained |", "|---|---|---|---|"]
    commands = []
    for name, result in results.items():
        took = f"{result['minutes']:.0f} min"
        for i, (what, before, after) in enumerate(result["table"]):
            lines.append(f"| {'' if i else f'`{name}`, {took}'} | {what} | {before} | {after} |")
        commands.append(f"python main.py {result['command']}")
    return "\n".join([*lines, "", "```bash", *commands, "```", ""])


def write_between_marks(path, text):
    """Replaces what stands between the page's marks, so that no figure is copied by hand."""
    start, end = "<!-- finetune: written by the command -->", "<!-- /finetune -->"
    page, count = re.subn(
        f"({re.escape(start)}\n).*?({re.escape(end)})", lambda match: match[1] + text + match[2],
        path.read_text(encoding="utf-8"), flags=re.DOTALL,
    )  # fmt: skip
    if count != 1:
        raise SystemExit(f"{path} must have the marks {start} and {end} once, found {count}")
    path.write_text(page, encoding="utf-8")


def main(
    trainings: Annotated[tuple[Literal[tuple(TRAININGS)], ...], tyro.conf.Positional] = (),
    source: str = "emoji",
    workdir: Path = Path("runs/finetune"),
    save: bool = True,
):
    """Trains, measures, prints and writes.

    trainings: which; all where none is named. The others keep their figures. source: "emoji", drawn
    from the installed font, or folder:PATH with all of them and their captions. workdir: where the
    pictures and the trainings go. save: write the results and the table.
    """
    use_cpu_devices()
    bench = Bench(source, workdir)
    place, results = RESULTS / "finetune.json", {}
    if place.exists():
        results = json.loads(place.read_text())["results"]
    for name in trainings or TRAININGS:
        trained = bench.train(name)
        figures, table = MEASURES[name](bench)
        results[name] = {**trained, "machine": machine(), "figures": figures, "table": table}
        for row in table:
            print(name, *row, sep=" | ", flush=True)
    results = {name: results[name] for name in TRAININGS if name in results}
    if save:
        written = {"benchmark": "finetune", "results": results}
        place.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        write_between_marks(DOCS / "finetuning.md", markdown(results))


if __name__ == "__main__":
    tyro.cli(main)
