"""What a run shows and keeps of itself: progress bar, metrics.jsonl, TensorBoard, sample sheets."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sdjax.evaluation.sheets import sheet as make_sheet

from .board import Board


class Report:
    """The report of one run in `folder`, from `start` (the step it resumes after) to `steps`.

    Lines of metrics.jsonl beyond `start`, left by a run that was killed after its last
    checkpoint, are dropped, and so are TensorBoard's.
    """

    def __init__(self, folder, name, start, steps):
        self._folder, self._name, self._steps = Path(folder), name, steps
        self._console = Console()
        self._path = self._folder / "metrics.jsonl"
        _drop_lines_after(self._path, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = Board(self._folder / "tensorboard", start + 1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s, "
                       "{task.fields[left]} left"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            name, total=steps, completed=start, loss="…", rate="…", left="…"
        )

    def say(self, line):
        """One line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stage(self, what):
        """Tell what goes on meanwhile: beside the bar, or in a line where there is none."""
        self._bar.update(self._task, description=f"{self._name}: {what}" if what else self._name)
        if what and not self._console.is_terminal:
            self.say(f"{self._name}: {what}")

    def advance(self, step):
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def metrics(self, step, values, pace, seconds, seconds_left):
        """Record dicts of floats, of the updates that end with `step` and of their pace."""
        line = {"step": step, "seconds": round(seconds, 2),
                **{name: float(f"{value:.4g}") for name, value in pace.items()}, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._board.scalars(step, values | pace)
        loss, rate = f"{values['loss']:.4f}", f"{pace['images_per_second']:.0f}"
        notes = f", {pace['waiting_for_data']:.0%} of it waiting for data" * (
            pace["waiting_for_data"] >= 0.05)
        if "utilisation" in pace:
            notes += f", {pace['utilisation']:.0%} of the chip"
        if self._console.is_terminal:
            left = timedelta(seconds=round(seconds_left))
            self._bar.update(self._task, loss=loss, rate=rate, left=left)
        else:
            self.say(f"{self._name} {step}/{self._steps}  loss {loss}  {rate} images/s{notes}, "
                     f"{seconds_left / 60:.1f} min left")

    def validation(self, step, loss, seconds):
        """Record the loss of what is kept out of training, as it is after `step`."""
        line = {"step": step, "seconds": round(seconds, 2), "validation_loss": loss}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._board.scalars(step, {"validation_loss": loss})
        self.say(f"{self._name} {step}/{self._steps}  validation loss {loss:.4f}")

    def sheet(self, step, images, captions=None):
        """Write a sample sheet (images as `sdjax.evaluation` takes them) as PNG and to TensorBoard.

        Returns the path of the PNG.
        """
        picture = make_sheet(images, captions)
        path = self._folder / "sheets" / f"{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path, "png")
        self._board.picture(step, "samples", np.asarray(picture))
        return path

    def close(self):
        """Stop the bar and close the files."""
        self._bar.stop()
        self._file.close()
        self._board.close()


class Silent:
    """In place of a report where another process gives it."""

    def __init__(self, *given):
        pass

    def _nothing(self, *given):
        pass

    say = stage = advance = metrics = validation = sheet = close = _nothing


def _drop_lines_after(path, step):
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        path.write_text("".join(kept), encoding="utf-8")
