"""The changes that an ablation tries, as a TOML file names them: group, name, and settings as `--set` takes them.

[losses]
cross-entropy = ["train.loss.dice_weight=0"]
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from compress.recipe import Recipe
from export.errors import RecipeError, UsageError

BASE = "base"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")
"""Groups and changes also name the folders of the trainings."""


@dataclass(frozen=True)
class Change:
    """One thing that is done differently from the base recipe."""

    group: str
    name: str
    settings: tuple[str, ...]
    """As `--set` takes them, applied over those of the base; none: the base itself."""

    def __str__(self) -> str:
        return f"{self.group}.{self.name}"


def read_changes(source: Path | None = None, *, groups: Sequence[str] = ()) -> tuple[Change, ...]:
    """The changes in a TOML file (None: the list that comes with the program), only of `groups` where any are named.

    Raises RecipeError with everything that is wrong with the file, UsageError for a group that it does not have.
    """
    path = _usual() if source is None else source
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RecipeError(path, ["no such file; give a TOML file with the changes of each group"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(path, [f"not TOML: {error}"]) from error
    if problems := list(_problems(tree)):
        raise RecipeError(path, problems)
    if unknown := [group for group in groups if group not in tree]:
        raise UsageError(f"{path} has no group {', '.join(unknown)}; it has {', '.join(tree)}")
    return tuple(
        Change(group, name, tuple(settings))
        for group, changes in tree.items()
        if not groups or group in groups
        for name, settings in changes.items()
    )


def changed(source: str | None, settings: Sequence[str], changes: Sequence[Change], *, named: str) -> list[Recipe]:
    """The base recipe `source` with `settings`, once with each of `changes`, which come from the file `named`.

    Raises RecipeError with every change that is invalid.
    """
    recipes: list[Recipe] = []
    problems: list[str] = []
    for change in changes:
        try:
            recipes.append(Recipe.load(source, [*settings, *change.settings]))
        except RecipeError as error:
            problems.extend(f"{change}: {problem}" for problem in error.problems)
    if problems:
        raise RecipeError(named, problems)
    return recipes


def _usual() -> Path:
    return Path(str(resources.files("compress") / "recipes" / "ablation" / "usual.toml"))


def _problems(tree: dict[str, Any]) -> Iterator[str]:
    if not tree:
        yield "there is no group in it; give each group a table of changes"
    for group, changes in tree.items():
        if not isinstance(changes, dict):
            yield f"{group}: must be a table of changes, each a list of settings"
            continue
        if group == BASE:
            yield f"{group}: this name stands for the recipe without any change; give the group another"
        for name, settings in changes.items():
            if not _NAME.fullmatch(name) or not _NAME.fullmatch(group):
                yield f"{group}.{name}: names consist of letters, digits and + . _ -, the first a letter or digit"
            if not isinstance(settings, list) or not all(isinstance(setting, str) for setting in settings):
                yield f'{group}.{name}: must be a list of settings, such as ["train.loss.dice_weight=0"]'
