"""The floors of training stand on each other in one order."""

import ast
from pathlib import Path

import pytest

import sdjax.training

FOLDER = Path(sdjax.training.__file__).parent
ORDER = ("loop", "adaptations", "objectives", "recipes")  # each imports from those before it


def imported(path):
    """Floors that a module imports from."""
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
            if parts[:2] == ["sdjax", "training"]:
                yield parts[2]


@pytest.mark.parametrize("floor", ORDER)
def test_a_floor_imports_only_from_floors_below(floor):
    below = set(ORDER[:ORDER.index(floor)])
    files = sorted((FOLDER / floor).glob("*.py"))
    assert files
    for path in files:
        assert set(imported(path)) <= below, path


def test_every_module_is_on_a_floor():
    found = {path.name for path in FOLDER.iterdir() if not path.name.startswith("_")}
    assert found == set(ORDER)
