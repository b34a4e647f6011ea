"""The notebook, run whole as a Colab user runs it: cell after cell in one namespace."""

import json
import shlex
from pathlib import Path

import pytest

import sdjax
import sdjax.training
from sdjax.cli import main

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
PROGRAMS = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def ran(line):
    """A line as Python: commands of the shell are run here, the installation is there already."""
    if line.startswith("%pip install"):
        return "pass"
    if line.startswith("!sdjax "):
        return f"assert _main({shlex.split(line)[1:]!r}) == 0"
    assert not line.startswith(("!", "%")), line
    return line


def test_nothing_is_kept_of_a_run():
    """No outputs and no counts: they would be some machine's, and large."""
    for cell in CELLS:
        assert cell["cell_type"] == "markdown" or not cell["outputs"] and not cell["execution_count"]


def test_every_program_is_python():
    for program in PROGRAMS:
        compile("\n".join(map(ran, program.splitlines())), NOTEBOOK.name, "exec")


def test_commands_are_read_to_their_last_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sdjax.training, "train", lambda *_: True)
    lines = [line for program in PROGRAMS for line in program.splitlines() if line[:1] == "!"]
    assert lines
    for line in lines:
        exec(ran(line), {"_main": main})


@pytest.mark.full
def test_it_runs_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"_main": main}
    for program in PROGRAMS:
        exec("\n".join(map(ran, program.splitlines())), names)
    assert names["sdjax"] is sdjax
    assert (tmp_path / "picture.png").is_file()
    assert (tmp_path / "my-model" / "model_index.json").is_file()
