"""Every setting of a run, in one typed tree: TOML in, TOML out.

A recipe file holds only what differs from the defaults in `compress.settings`. `--set train.epochs=20` changes one
setting on the command line. An invalid value is refused with its place and the reason, an unknown name with the nearest
known one.
"""

import copy
import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self, get_args

import tomli_w
from pydantic import BaseModel, ValidationError, model_validator

from compress.own import is_own
from compress.settings.common import Settings
from compress.settings.data import DataSettings
from compress.settings.model import MODELS, ModelSettings, UNetSettings
from compress.settings.prune import PruneSettings
from compress.settings.quantize import QuantizeSettings
from compress.settings.train import TrainSettings
from compress.settings.whole import BenchSettings, BudgetSettings, ExportSettings
from export.errors import RecipeError

_OVERRIDES = "on the command line"
"""Where problems are that the recipe file alone does not have."""


class Recipe(Settings):
    """The whole tree."""

    data: DataSettings = DataSettings()
    model: ModelSettings = UNetSettings()
    train: TrainSettings = TrainSettings()
    prune: PruneSettings = PruneSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    export: ExportSettings = ExportSettings()
    budget: BudgetSettings = BudgetSettings()
    bench: BenchSettings = BenchSettings()

    @model_validator(mode="after")
    def _batches_can_be_mixed(self) -> Self:
        sizes = {"train": self.train.batch_size, "prune.finetune": self.prune.finetune.batch_size}
        if self.quantize.mode == "qat":
            sizes["quantize.finetune"] = self.quantize.finetune.batch_size
        alone = [f"{section}.batch_size" for section, size in sizes.items() if size == 1]
        mixing = [f"train.augment.{name}" for name in ("cutmix", "mixup") if getattr(self.train.augment, name)]
        if alone and mixing:
            raise ValueError(
                f"nothing could be mixed for {' and '.join(mixing)}, because a batch is one image with "
                f"{' and '.join(alone)} = 1: set that to 2 or more, or {' and '.join(mixing)} to 0"
            )
        return self

    @classmethod
    def load(cls, source: Path | str | None = None, overrides: list[str] | None = None) -> "Recipe":
        """Read a TOML file (or a built-in recipe by name) and apply `section.name=value` overrides.

        Raises RecipeError with everything that is wrong.
        """
        where, own = ("", {}) if source is None else _read(source)
        tree = copy.deepcopy(own)
        problems = [problem for text in overrides or [] if (problem := _override(tree, text))]
        if problems:
            raise RecipeError(_OVERRIDES, problems)
        recipe, problems = _validated(tree)
        if recipe is None:
            in_file = set(problems).intersection(_validated(own)[1])
            both = f"{where} and {_OVERRIDES}"
            raise RecipeError(_OVERRIDES if not in_file else both if len(in_file) < len(problems) else where, problems)
        return recipe

    def to_toml(self) -> str:
        return tomli_w.dumps(self.as_tree())

    def as_tree(self) -> dict[str, Any]:
        """Plain values, unset ones left out: what TOML and JSON can hold."""
        tree: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return tree


def on_one_line(value: Any) -> str:
    """`value` as written after the equals sign in a recipe and in `--set`; `none` for a setting that is not set."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{on_one_line(name)} = {on_one_line(item)}" for name, item in value.items()) + "}"
    # TOML does not know the surrogate pairs that JSON writes for characters beyond 16 bits.
    return json.dumps(value, ensure_ascii=False)


def unusual(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of a recipe's tree, or of some sections of it, that differ from the defaults, as `--set` takes them.

    A tree from another version is taken as it is: settings that no longer exist are unusual, too.
    """
    factory = tree.get("model", {}).get("factory", "unet")
    model = {"factory": factory} if factory in MODELS or is_own(factory) else {}
    usual = dict(leaves(Recipe.model_validate({"model": model}).model_dump(mode="json")))
    found = {name: value for name, value in leaves(tree) if name not in usual or usual[name] != value}
    if factory != "unet":
        found = {"model.factory": factory, **found}
    return tuple(f"{name}={on_one_line(value)}" for name, value in found.items())


def leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a tree with their dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def builtin_recipes() -> dict[str, Path]:
    """Recipes that ship with the package, by name."""
    folder = Path(str(resources.files("compress") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _read(source: Path | str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    try:
        # A folder of that name, such as the dataset's, does not hide a built-in recipe.
        if not path.suffix and not path.is_file():
            path = builtin_recipes().get(str(source), path)
        return str(path), tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        known = ", ".join(builtin_recipes())
        raise RecipeError(path, [f"no such file; give a TOML file or a built-in recipe ({known})"]) from error
    except OSError as error:
        raise RecipeError(path, [f"cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(path, [f"not TOML: {error}"]) from error


def _validated(tree: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe of a tree, or all that is wrong with it."""
    try:
        return Recipe.model_validate(tree), []
    except ValidationError as error:
        return None, [_explain(item) for item in error.errors()]


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Put `a.b=value` into `tree`; the value is read as TOML, or else as plain text, and `none` unsets."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        return f"{text!r}: write section.name=value, such as train.epochs=20"
    branch = tree
    for name in names[:-1]:
        branch = branch.setdefault(name, {})
        if not isinstance(branch, dict):
            return f"{text!r}: {name} is a value, not a section"
    try:
        read = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        read = None if value.strip() == "none" else value.strip()
    # A name may look like a number or a date: version 1.10 is not 1.1.
    branch[names[-1]] = value.strip() if not isinstance(read, _TEXT) and _is_text(names) else read
    return None


_TEXT = (str, bool, list, dict, type(None))


def _is_text(names: list[str]) -> bool:
    """Whether the setting is a text or a path, and nothing that TOML would write without quotes."""
    section = _section_at(names[:-1], None)
    field = section.model_fields.get(names[-1]) if section else None
    kinds = set(_kinds(field.annotation)) if field else set()
    return bool(kinds & {str, Path}) and not kinds & {bool, int, float}


def _kinds(annotation: Any) -> Iterator[Any]:
    """The annotation itself, or what it is made of."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _kinds(part)


def _explain(item: Any) -> str:
    place = [part for part in item["loc"] if isinstance(part, str)]
    model = next((kind for kind in MODELS if place[:2] == ["model", kind]), None)
    if model is not None:
        del place[1]  # the model's kind, which is no key of a recipe: model.factory names it
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _names_at(place[:-1], MODELS.get(model or ""))
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{'.'.join(place)}: no such setting; {hint}"
    if item["type"] == "union_tag_invalid" and not isinstance(item["input"], Mapping):
        return f"model = {item['input']!r}: a value for a section; write model.factory = 'unet'"
    if item["type"] == "union_tag_invalid":
        models = ", ".join(name for name in MODELS if name != "own")
        return (
            f"model.factory = {item['input'].get('factory')!r}: no such model; known: {models}, and your own as "
            "package.module:factory or path/to/file.py:factory"
        )
    if not place:
        return str(message)
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        return f"{'.'.join(place)}: {message}"  # about several settings together, which the message names
    return f"{'.'.join(_setting(place, MODELS.get(model or '')))} = {item['input']!r}: {message}"


def _setting(place: list[str], model: type[BaseModel] | None) -> list[str]:
    """`place` up to the setting: pydantic may add the name of one of the types that the setting can have."""
    depths = range(1, len(place))
    return next((place[:depth] for depth in depths if not _names_at(place[:depth], model)), place)


def _names_at(place: list[str], model: type[BaseModel] | None) -> list[str]:
    section = _section_at(place, model)
    return list(section.model_fields) if section else []


def _section_at(place: list[str], model: type[BaseModel] | None) -> type[BaseModel] | None:
    branch: type[BaseModel] = Recipe
    for name in place:
        field = branch.model_fields.get(name)
        annotation = model if name == "model" else field.annotation if field else None
        if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
            return None
        branch = annotation
    return branch
