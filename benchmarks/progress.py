"""How this package reports its progress; `compress.progress.task` is one implementation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One long step."""

    def advance(self, steps: int = 1) -> None: ...


Progress = Callable[[str, int], AbstractContextManager[Bar]]
"""Takes a title and the number of steps; gives a bar that lives as long as the block."""


class _NoBar:
    def advance(self, steps: int = 1) -> None:
        del steps


@contextmanager
def silent(title: str, total: int) -> Iterator[Bar]:
    """Show nothing."""
    del title, total
    yield _NoBar()
