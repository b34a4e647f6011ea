"""How far a generation is: a bar with its rate and the time left, or a function of the caller's."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sdjax.diffusion.tables import Table

Advance = Callable[[int], None]
Look = tuple[int, Callable[[int, int, object], None]]
"""A number of evaluations, and what is to be called after each so many: a function of (evaluations
done, evaluations in all, the `Underway`)."""
STILL = 0.5  # seconds for which a bar may stand still


class _Rate(TextColumn):
    """Evaluations a second, or seconds an evaluation where that is the larger number."""

    def __init__(self):
        super().__init__("")

    def render(self, task):
        speed = task.finished_speed or task.speed
        if not speed:
            return super().render(task)
        self.text_format = f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"
        return super().render(task)


@contextlib.contextmanager
def reported(progress: bool | Callable[[int, int], None], total: int) -> Iterator[Advance | None]:
    """What to call with the number of evaluations just done, or None where nobody looks on.

    progress: True for a bar on a terminal or in a notebook, False for none, or a function of
    (evaluations done, evaluations in all).
    """
    if callable(progress):
        done = 0

        def advance(count):
            nonlocal done
            done += count
            progress(done, total)

        yield advance
        return
    console = Console(stderr=True)
    if not progress or not (console.is_terminal or console.is_jupyter):
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(
        elapsed_when_finished=True
    ))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, advance=count)


def carry_out(
    run: Callable, table: Table, underway, advance: Advance | None, look: Look | None = None
):
    """`run(table, underway)` in one call, or where somebody is to be told, in several.

    The parts get as long as a bar may stand still, so that a fast model is not slowed down by more
    calls than it needs. Between them a keyboard interrupt is heard.
    """
    if advance is None and look is None:
        return run(table, underway)
    every, show = look or (None, None)
    # Each process would measure other times, and all must run the same parts.
    alone = jax.process_count() == 1
    rows = table.evaluating
    done, count = 0, 1 if alone and advance else len(rows)
    while done < len(rows):
        stop = min(done + count, len(rows))
        stop = min(stop, done + every - done % every) if every else stop
        first = rows[done] if done else 0
        last = rows[stop] if stop < len(rows) else table.rows.kind.shape[-1]
        started = time.perf_counter()
        underway = jax.block_until_ready(run(table.part(first, last), underway))
        seconds = time.perf_counter() - started
        if advance is not None:
            advance(stop - done)
            if alone:
                count = max(1, int((stop - done) * STILL / max(seconds, 1e-6)))
        if every and (stop % every == 0 or stop == len(rows)):
            show(stop, len(rows), underway)
        done = stop
    return underway
