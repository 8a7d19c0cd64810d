"""One tree of exceptions; each message says what is wrong, where, and what to do.

SegpressError                   the base: the command line prints its message, never a traceback
|- UsageError                   the caller's input is wrong (exit status 2)
|  |- DatasetError              a dataset folder
|  |- RecipeError               a recipe file, or a setting on the command line
|  |- CheckpointError           a checkpoint folder or weights file
|  |- ModelError                a network of the user's own
|  |- BundleError               a bundle folder: everything wrong with it at once
|  |- ImageError                bytes that are not an image in an accepted format
|  |- ShapeError                arrays or tensors whose shapes do not go together
|  |- BusyError                 another run is writing the same folder
|  `- MissingExtraError         an optional dependency that is not installed
`- WorkFailedError              the input was sound, the work did not succeed (exit status 1)
   |- BudgetMissedError         too much accuracy was lost, or too little speed gained; the best found is kept
   `- ParityError               two forms of one model do not give the same answers
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class SegpressError(Exception):
    """Base of everything that segpress raises on purpose."""

    exit_status = 1


class UsageError(SegpressError):
    """The input is wrong; the user can correct it."""

    exit_status = 2


class _ProblemsError(UsageError):
    """Everything that is wrong with one input, a line each."""

    noun = "input"

    def __init__(self, where: Path | str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{self.noun} {where}: {count}{lines}")


class DatasetError(_ProblemsError):
    """A dataset folder that cannot be used as it is."""

    noun = "dataset"


class RecipeError(_ProblemsError):
    """A recipe, or a setting on the command line, that is not valid."""

    noun = "recipe"


class CheckpointError(_ProblemsError):
    """A checkpoint folder or a file of weights that cannot be used."""

    noun = "checkpoint"


class ModelError(_ProblemsError):
    """A network of the user's own that cannot be built, or breaks the contract of models."""

    noun = "model"


class BundleError(_ProblemsError):
    """A bundle that must not serve."""

    noun = "bundle"


class ImageError(UsageError):
    """Bytes that are not an image in an accepted format.

    `reason` is one of a short list of words, fit for a metric's label.
    """

    def __init__(self, message: str, *, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class ShapeError(UsageError):
    """Arrays or tensors whose shapes do not go together."""


class BusyError(UsageError):
    """Another run holds the lock on the folder."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""


class WorkFailedError(SegpressError):
    """The input was sound but the work did not succeed."""


class BudgetMissedError(WorkFailedError):
    """The budget was missed; the best that was found is kept, and the message names it."""


class ParityError(WorkFailedError):
    """Two forms of one model give different answers."""


def field_problems(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """`place: message` of each of pydantic's `errors()`. What was given is not repeated: it may be long or secret."""
    return [": ".join(filter(None, (".".join(map(str, error["loc"])), error["msg"]))) for error in found]


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`.

    Raises MissingExtraError, which names the extra that brings it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs {error.name}, which is not installed; run: pip install 'segpress[{extra}]'"
        ) from error
