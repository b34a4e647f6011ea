"""Captions of pictures in metadata files, as Hugging Face's imagefolder has them."""
import csv
import io
import json
import pathlib

from sdjax.errors import SdjaxError
from sdjax.text_files import read_text

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def metadata_file(folder: pathlib.Path) -> pathlib.Path | None:
    """The metadata file that lies in a folder, or None; SdjaxError where there are two, or where it
    is of a kind that is not read.
    """
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise SdjaxError(f"{folder} has {' and '.join(p.name for p in found)}: keep one of them")
    if found and found[0].suffix == ".parquet":
        raise SdjaxError(f"{found[0]} is not read: write its rows to a metadata.jsonl or .csv")
    return found[0] if found else None


def read_metadata(path: pathlib.Path, keys):
    """The rows of a metadata file, and what is wrong with others.

    Args:
      keys: names of what may hold the caption, the first that a row has.

    Returns:
      (rows, broken): rows are (file name as written, caption or "", why it is "" where the row's
      own text is not), and broken (place, reason).
    """
    read = _csv_rows if path.suffix == ".csv" else _json_rows
    rows, broken = [], []
    for place, row in read(path):
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name.strip():
            kind = "a row" if path.suffix == ".csv" else "a JSON object"
            broken.append((place, f'not {kind} with a "file_name"'))
            continue
        key = next((key for key in keys if row.get(key) is not None), None)
        caption, problem = row.get(key, ""), None
        if key is None:
            problem = f"{place} has no {' or '.join(map(repr, keys))}"
        elif not isinstance(caption, str):
            problem, caption = f"{key!r} in {place} is no text", ""
        rows.append((name.strip(), caption.strip(), problem))
    return rows, broken


def _json_rows(path):
    # Not splitlines: what else it takes for the end of a line may stand in a caption.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"{path.name} line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"{path.name} line {number}", None


def _csv_rows(path):
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if "file_name" not in (rows.fieldnames or ()):
            raise SdjaxError(f"{path} must have a column file_name, separated by commas from "
                             f"others; its columns are {', '.join(rows.fieldnames or ['none'])}")
        for row in rows:
            yield f"{path.name} line {rows.line_num}", row
    except csv.Error as error:
        raise SdjaxError(f"{path} line {rows.line_num} is not CSV: {error}") from error
