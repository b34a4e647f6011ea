"""The recipes that come with the project, by name: `shapes` is configs/shapes.py."""

import difflib
from pathlib import Path

from sdjax.errors import SdjaxError

_PACKAGE = Path(__file__).parents[2]
# A wheel has the recipes inside the package, a checkout and what is installed from it beside it.
_FOLDERS = _PACKAGE / "recipes", _PACKAGE.parent / "configs"


def known_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the project."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def find_recipe(name) -> Path:
    """The file of a recipe: of a known name, or `name` itself where it is a path.

    Raises:
      SdjaxError: neither; the message names the nearest known one and lists all.
    """
    known, path = known_recipes(), Path(name)
    if str(name) in known:
        return known[str(name)]
    if path.is_file():
        return path
    beside = sorted(path.parent.glob("*.py")) if path.suffix == ".py" else []
    spelled = {stem: stem for stem in known} | {found.stem: str(found) for found in beside}
    near = difflib.get_close_matches(path.stem, spelled, 1)
    hint = f"; did you mean {spelled[near[0]]}?" if near else ""
    there = ", ".join(spelled.values()) or "none"
    raise SdjaxError(f"no recipe {name}, neither by name nor as a file: there are {there}{hint}")
