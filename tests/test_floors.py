"""The floors of a room stand on each other in one order."""

import ast
import re
from pathlib import Path

import pytest

import sdjax

PACKAGE = Path(sdjax.__file__).parent
# Each imports from those before it, and all that lies beside them from them all.
ORDER = {
    "training": ("loop", "adaptations", "objectives", "recipes"),
    "pipeline": ("model", "compiled", "given", "steering", "results", "plans"),
}
# What knows arrays alone, whatever they are of.
OF_ALL = ("diffusion", "training/loop", "checkpoints.py", "parallel")
ITS_KIND = re.compile(
    r"video|\bfilms?\b|sound|audio|speech|spectrogram|molecul|\batoms?\b|chemi", re.IGNORECASE)
FLOORS = [(room, floor) for room, floors in ORDER.items() for floor in floors]


def imported(path, room):
    """Floors, or modules, of the room that a module imports from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{path}: another floor is named whole"
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[:2] == ["sdjax", room]:
                yield parts[2]


@pytest.mark.parametrize(("room", "floor"), FLOORS)
def test_a_floor_imports_only_from_floors_below(room, floor):
    order = ORDER[room]
    allowed = set(order[: order.index(floor) + 1])
    files = sorted((PACKAGE / room / floor).glob("*.py"))
    assert files
    for path in files:
        assert set(imported(path, room)) <= allowed, path


def test_every_module_of_training_is_on_a_floor():
    found = {path.name for path in (PACKAGE / "training").iterdir() if not path.name.startswith("_")}
    assert found == set(ORDER["training"])


def test_what_serves_all_kinds_of_data_names_none():
    for place in OF_ALL:
        path = PACKAGE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            assert not ITS_KIND.findall(file.read_text(encoding="utf-8")), file
