"""A bar on a terminal for work that takes its time."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator

    from pgcontext.cli.output import Output


class Report(Protocol):
    """Tells how far the work has come."""

    def __call__(self, done: float, said: str, *, total: float | None = None) -> None:
        """Say how much is done, of how much if that has changed, and what to read beside it."""


@contextmanager
def bar(out: Output, total: float | None, said: str) -> Generator[Report]:
    """Show a bar with the time that is left, on a terminal only; give the function to report to.

    Args:
        out: of the command.
        total: how much there is to do; None when nobody knows.
        said: what to read beside the bar at first.
    """
    if out.as_json or not out.stderr.is_terminal:
        yield _unseen
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    left = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    shown = Progress(
        TextColumn("{task.fields[said]}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        left,
        console=out.stderr,
        transient=True,
    )
    with shown:
        task = shown.add_task("work", total=total, said=said)

        def report(done: float, said: str, *, total: float | None = None) -> None:
            shown.update(task, completed=done, said=said, total=total)

        yield report


def _unseen(done: float, said: str, *, total: float | None = None) -> None:
    """Report to nobody."""
