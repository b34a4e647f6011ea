"""What an evaluation leaves behind: a table on the terminal, a JSON file, a sheet."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import rich
from rich.table import Table

from sdjax.folders import writable_folder

RIGHT, WRONG = "#1a7f37", "#cf222e"


class Figures:
    """The files of one evaluation: out/NAME.json, and sheets beside it whose names begin like it.

    What is there already of another model, of the same one after more training, or of other
    settings, is kept: then the name is NAME-2, NAME-3, …, and that is told.

    Args:
      config: what is measured and how, a dataclass with the folder `out`, which is made.
      name: of the evaluation.
      subject: what is measured, as a folder, a file or a hub id; where None, nothing that is there
        is taken for the same.
    """

    def __init__(self, config, name, subject=None):
        self.folder = writable_folder(config.out)
        self.about = {
            "model": None if subject is None else str(subject), "files": _files(subject),
            "settings": json.loads(json.dumps(dataclasses.asdict(config))),
        }
        self.stem, number = name, 1
        while not self._free(subject):
            number += 1
            self.stem = f"{name}-{number}"
        if number > 1:
            rich.print(f"{self.folder / name}.json has figures of another model or of other "
                       f"settings: these go to {self.stem}.json")

    def _free(self, subject):
        path = self.path(".json")
        if not path.exists():
            return True
        try:
            there = json.loads(path.read_text("utf-8"))
            mine = json.loads(json.dumps(self.about))
            return subject is not None and all(there[key] == mine[key] for key in mine)
        except (OSError, ValueError, KeyError, TypeError):  # not of this program, or of an older
            return False

    def path(self, ending):
        """Of a file that belongs to them: "_train.png" and the like."""
        return self.folder / (self.stem + ending)

    def write(self, results):
        """`results`, a dict of plain values, as indented JSON; with what they are of, as a dict."""
        results = {**results, **self.about}
        text = json.dumps(results, indent=1, ensure_ascii=False)
        self.path(".json").write_text(text + "\n", "utf-8")
        return results


def _files(subject):
    """A short digest of the names, sizes and times of a folder's files, or a file's; else None."""
    path = Path(subject) if subject is not None else None
    if path is None or not path.exists():
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def show(title, columns, rows, path):
    """Print rows (label, values …) under a title, and where the files lie."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    rich.print(table)
    rich.print(f"written to {path}")


def percent(share):
    """A share as text, with one decimal."""
    return f"{100 * share:.1f} %"


def interval(share, count):
    """Wilson's 95 % interval [low, high] of a share seen in `count` trials."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return [max(0.0, centre - half), min(1.0, centre + half)]
