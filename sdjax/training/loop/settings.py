"""Settings that something was made by, and how the present ones differ."""

import json
from pathlib import Path

from rich.console import Console

from sdjax.parallel import leader

NAME = "settings.json"


def as_json(settings):
    """A dict as it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(settings))


def changes(before, now, path=""):
    """Lines that name the values of the nested dict `now` which are others in `before`.

    Dicts in lists of equal length are compared one by one, named as on the command line. A value
    that `before` has no name for, as of an earlier version, is none that was changed.
    """
    if _dicts(before) and _dicts(now) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for name, value in now.items()
            if name in before
            for line in changes(before[name], value, f"{path}.{name}" if path else name)
        ]
    return [] if before == now else [f"changed since: {path} {before!r} -> {now!r}"]


def _dicts(value):
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def keep(folder, settings):
    """Write down the settings, a dict, that `folder` is made by."""
    Path(folder, NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def changes_since(folder, settings):
    """Lines on how `settings` differ from those that the finished `folder` was made by."""
    path = Path(folder, NAME)
    if not path.exists():
        return []
    return changes(json.loads(path.read_text(encoding="utf-8")), as_json(settings))


def tell(folder, lines):
    """Print what has changed since something finished, and that it counts no more."""
    if lines:
        say(f"{folder} is finished and used as it is:", *lines)


def say(*lines):
    """Print lines as they are, by one process of a job."""
    if not leader():
        return
    console = Console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
