"""What a work folder knows of the data that was trained on there last."""

import os
from pathlib import Path

from sdjax.data.content import Content, Stamps
from sdjax.data.source import Source
from sdjax.training.loop.settings import say


NAME = "data.json"


def content_of(source: Source, workdir, count: int, read: bool) -> Content | None:
    """What the first `count` items of a source are; None where it cannot tell.

    read: whether the bytes of its files count, beside their sizes and times. Those that the work
    folder knows are not read again.
    """
    known = _known(workdir)
    stamps = Stamps(known.files if known else {}, read)
    return source.content(stamps, count)


def tell_changes(workdir, content: Content | None):
    """Say in one line how the data differs from that of the last run in `workdir`, and note it."""
    if content is None:
        return
    known = _known(workdir)
    if known is not None and (changes := content.changes(known)):
        say(f"the data has changed since the last run in {workdir}: {changes}")
    if known != content:
        path = Path(workdir, NAME)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(content.to_json(), encoding="utf-8")
        os.replace(unfinished, path)


def _known(workdir):
    try:
        return Content.from_json(Path(workdir, NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):  # of another version, or damaged
        return None
