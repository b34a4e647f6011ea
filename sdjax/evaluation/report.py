"""What an evaluation leaves behind: a table on the terminal, a JSON file, a sheet."""

import json
import math
from pathlib import Path

import rich
from rich.table import Table

RIGHT, WRONG = "#1a7f37", "#cf222e"


def write_json(path, results):
    """`results`, a dict of plain values, as indented JSON."""
    Path(path).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


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
