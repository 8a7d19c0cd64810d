"""Progress of long steps: a bar on a terminal, lines in a log. Always on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0
_UNLIMITED = 10_000
"""Characters in a line."""


class Task:
    """One bar: `advance` moves it, keyword arguments are shown beside it (loss=0.31, mIoU=0.84)."""

    def __init__(self, title: str, total: int, console: Console, bar: Progress | None) -> None:
        self._title = title
        self._total = total
        self._console = console
        self._bar = bar
        self._id: TaskID | None = bar.add_task(title, total=total, figures="") if bar else None
        self._done = 0
        self._figures: dict[str, str] = {}
        self._last_line = time.monotonic()

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._done += steps
        self._figures |= {name: f"{value:#.4g}".rstrip(".") for name, value in figures.items()}
        text = " ".join(f"{name} {value}" for name, value in self._figures.items())
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, completed=self._done, figures=text)
        elif self._done >= self._total or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(f"{self._title}: {self._done}/{self._total} {text}".rstrip(), highlight=False)


@contextmanager
def task(title: str, total: int, *, done: int = 0) -> Iterator[Task]:
    """Show `title` with `total` steps to go, of which `done` are behind us (a resumed run)."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console) as bar:
            shown = Task(title, total, console, bar)
            if done:
                shown.advance(done)
            yield shown
    else:
        shown = Task(title, total, console, None)
        if done:
            shown.advance(done)
        yield shown


def say(text: str) -> None:
    """Print one line for the person who watches, on standard error like the bars."""
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def counter(title: str) -> Iterator[Callable[[int, int], None]]:
    """For work that reports (done, total) itself: the bar appears with its first report."""
    with ExitStack() as stack:
        shown: list[Task] = []
        behind = [0]

        def report(done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(task(title, total)))
            shown[0].advance(done - behind[0])
            behind[0] = done

        yield report


def show_table(table: Table) -> None:
    """Print the table that a command ends with, on standard output; in a file it is as wide as it has to be."""
    Console(width=None if sys.stdout.isatty() else _UNLIMITED).print(table)
