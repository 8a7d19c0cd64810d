"""How this package tells whoever watches how far it is; `compress.progress.task` is one such thing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One long step."""

    def advance(self, steps: int = 1) -> None: ...


Progress = Callable[[str, int], AbstractContextManager[Bar]]
"""A title and the number of steps, to a bar that lives as long as the step."""


class _NoBar:
    def advance(self, steps: int = 1) -> None:
        del steps


@contextmanager
def silent(title: str, total: int) -> Iterator[Bar]:
    """Nobody watches."""
    del title, total
    yield _NoBar()
