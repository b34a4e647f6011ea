"""What training on top of a model gives: the recipes on the shipped model, measured and drawn.

Each training is one command line of a recipe in configs/, run as a user runs it, on pictures that
`benchmarks.finetune_data` makes of the emoji:

- lora: a style, two colours, from twenty emoji; judged by forty others.
- dreambooth, dreambooth-alone: an emoji that the model never saw, from four pictures, with and
  without pictures of its class; judged by sixteen seeds, and by forty captions known before.
- word: the same emoji as a learned word.
- controlnet: outlines, of emoji turned as no caption says; judged by the outlines of what is made.
- inpaint: a U-Net of further channels beside the plain model's way to repaint.

    python -m benchmarks.finetune                # all, about an hour of one core
    python -m benchmarks.finetune lora --source folder:pictures-of-emoji

Writes results/finetune.json, pictures docs/images/finetune-*.webp and the table of
docs/finetuning.md. A training that is finished in the work folder is only measured again.
"""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.common import RESULTS, machine
from benchmarks.finetune_measures import MEASURES, Bench
from sdjax.parallel import use_compile_cache, use_cpu_devices

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
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


def command(name, work):
    """The command line of a training, without what starts it."""
    recipe, folder, options = TRAININGS[name]
    return [
        "train", "--config", f"configs/{recipe}.py", "--model", "sdjax/assets/emoji",
        "--workdir", str(work / name), "--data.source", f"folder:{work / folder}",
        *shlex.split(options.format(work=work)), "--diffusion.sheet-every", "0",
    ]  # fmt: skip


def train(bench, name) -> dict:
    """Trains where there is no result yet: the command, minutes, and those of all cores."""
    line, told = command(name, bench.work), bench.work / name / "finetune.json"
    if told.exists():
        found = json.loads(told.read_text())
        if found["command"] != shlex.join(line):
            raise SystemExit(f"{told.parent} is of another command: move it away")
        return found
    bench.write_pictures(TRAININGS[name][1])
    print("sdjax", shlex.join(line), flush=True)
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "sdjax", *line], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = (bench.work / name / "diffusion" / "metrics.jsonl").read_text().splitlines()
    found = {
        "command": shlex.join(line),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "core_minutes": round(spent / 60, 1),
        "last": json.loads(lines[-1]),
    }
    told.write_text(json.dumps(found, indent=1) + "\n")
    return found


SHOWN = {
    "lora-pictures": "The twenty pictures of the style, in blue on white",
    "lora": "Emoji that were not among the twenty, without and with the LoRA",
    "dreambooth-alone": "The new emoji and the bear, without pictures of the class",
    "dreambooth": "The same, with pictures of the class",
    "word": "The learned word",
    "controlnet": "Outlines, and what is made without and with them",
    "inpaint": "Emoji with their middle repainted by the plain model and by the trained one",
}


def markdown(results):
    """The table, the sheets, and the commands."""
    sheets = [
        f"![{text}](images/finetune-{name}.webp)\n" for name, text in SHOWN.items()
        if name.removesuffix("-pictures") in results
    ]  # fmt: skip
    lines = ["| training | measured | shipped | trained |", "|---|---|---|---|"]
    commands = []
    for name, result in results.items():
        took = f"{result['core_minutes']:.0f} core-minutes"
        for i, (what, before, after) in enumerate(result["table"]):
            lines.append(f"| {'' if i else f'`{name}`, {took}'} | {what} | {before} | {after} |")
        commands.append(f"python main.py {result['command']}")
    return "\n".join([*lines, "", *sheets, "```bash", *commands, "```", ""])


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
    pictures and the trainings go. save: write the results and the table. Paths begin at the
    checkout.
    """
    os.chdir(ROOT)
    use_cpu_devices()
    use_compile_cache()
    bench = Bench(source, workdir, DOCS / "images" if save else workdir)
    place, results = RESULTS / "finetune.json", {}
    if place.exists():
        results = json.loads(place.read_text(encoding="utf-8"))["results"]
    for name in trainings or TRAININGS:  # what is done is written before the next begins
        trained = train(bench, name)
        figures, table = MEASURES[name](bench)
        results[name] = {**trained, "machine": machine(), "figures": figures, "table": table}
        for row in table:
            print(name, *row, sep=" | ", flush=True)
        if save:
            write(place, {name: results[name] for name in TRAININGS if name in results})


def write(place, results):
    """The figures and the page's table, as far as there are any."""
    written = {"benchmark": "finetune", "results": results}
    place.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_between_marks(DOCS / "finetuning.md", markdown(results))


if __name__ == "__main__":
    tyro.cli(main)
