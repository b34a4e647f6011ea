"""What a work folder knows of the data that was trained on there last."""

import os
import time
from pathlib import Path

from sdjax.data.content import Content, Stamps
from sdjax.data.source import Source
from sdjax.training.loop.settings import say


NAME = "data.json"
QUIET = 2.0  # seconds of reading that nothing is said of


def content_of(source: Source, workdir, count: int, read: bool) -> Content | None:
    """What the first `count` items of a source are; None where it cannot tell.

    read: whether the bytes of its files count, beside their sizes and times. Those that the work
    folder knows are not read again.
    """
    known = _known(workdir)
    stamps = Stamps(known.files if known else {}, read, _told_in_time(count))
    return source.content(stamps, count)


def _told_in_time(total):
    """Says how many of the files are read, where that takes long."""
    due = time.monotonic() + QUIET

    def tell(count):
        nonlocal due
        if time.monotonic() >= due:
            say(f"reading the files once, to know later what has changed: {count} of about {total}")
            due = time.monotonic() + 5 * QUIET

    return tell


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
