"""The allowed values, the default and the purpose of every setting of a recipe, read from the settings themselves."""

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from compress.recipe import Recipe, on_one_line
from compress.settings.model import MODELS
from export.errors import UsageError

OWN = "own"
"""The key in `MODELS` for a network of the user's own."""


@dataclass(frozen=True)
class Setting:
    """One leaf of the tree."""

    name: str
    """As `--set` takes it: train.epochs."""
    default: Any
    """As JSON has it."""
    is_required: bool
    """There is no default."""
    schema: Mapping[str, Any]
    """Types and bounds, as JSON Schema says them."""
    doc: str

    @property
    def may_be(self) -> str:
        """The values that it takes, in words."""
        return _may_be(self.schema)

    def as_tree(self) -> dict[str, Any]:
        tree = {"name": self.name, "may_be": self.may_be, "schema": dict(self.schema), "doc": self.doc}
        return tree if self.is_required else {**tree, "default": self.default}

    def __str__(self) -> str:
        return f"{self.name} must be set" if self.is_required else f"{self.name} = {on_one_line(self.default)}"


@dataclass(frozen=True)
class Section:
    """A section of a recipe, without the sections inside it."""

    name: str
    doc: str
    settings: tuple[Setting, ...]
    model: str | None = None
    """The value of `model.factory` that has these settings, or `OWN`."""

    def as_tree(self) -> dict[str, Any]:
        model = {} if self.model is None else {"model": self.model}
        return {"name": self.name, **model, "doc": self.doc, "settings": [each.as_tree() for each in self.settings]}


def sections(name: str | None = None) -> list[Section]:
    """Everything under `name`: a section with those inside it, or one setting; without a name, all sections.

    Raises UsageError for a name that does not exist, with the nearest ones.
    """
    every = list(_all())
    if name is None:
        return every
    kept = []
    for section in every:
        inside = section.name == name or section.name.startswith(f"{name}.")
        settings = tuple(setting for setting in section.settings if inside or setting.name == name)
        if settings:
            kept.append(Section(section.name, section.doc, settings, section.model))
    if not kept:
        raise UsageError(f"{name}: no such setting; {_hint(name, every)}")
    return kept


def _all() -> Iterator[Section]:
    usual = Recipe()
    for name in Recipe.model_fields:
        if name == "model":
            for factory, kind in MODELS.items():
                made = None if factory == OWN else kind.model_validate({"factory": factory})
                yield from _of(kind, name, made, factory)
        else:
            yield from _of(type(getattr(usual, name)), name, getattr(usual, name))


def _of(kind: type[BaseModel], name: str, usual: BaseModel | None, model: str | None = None) -> Iterator[Section]:
    """The section of `kind`, whose defaults are those of `usual`, and the sections inside it."""
    schema = kind.model_json_schema()["properties"]
    plain = {} if usual is None else usual.model_dump(mode="json")
    settings, inner = [], []
    for field, info in kind.model_fields.items():
        value = getattr(usual, field, None)
        if isinstance(value, BaseModel):
            inner.append((type(value), f"{name}.{field}", value))
            continue
        default = plain.get(field, info.get_default(call_default_factory=True) if not info.is_required() else None)
        doc = _doc(kind, field)
        settings.append(Setting(f"{name}.{field}", default, info.is_required(), _bare(schema[field]), doc))
    yield Section(name, _written(kind.__doc__ or ""), tuple(settings), model)
    for each in inner:
        yield from _of(*each)


def _doc(kind: type[BaseModel], field: str) -> str:
    """The docstring of the nearest class that has one: a section that only changes a default need not repeat it."""
    fields = (base.model_fields.get(field) for base in kind.__mro__ if issubclass(base, BaseModel))
    return next((_written(each.description) for each in fields if each and each.description), "")


def _written(doc: str) -> str:
    """`doc` on one line, with `none` as recipes write it."""
    return re.sub(r"\bNone\b", "none", " ".join(doc.split()))


def _bare(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("title", "description", "default")}


def _hint(name: str, every: list[Section]) -> str:
    names = [[section.name, *(setting.name for setting in section.settings)] for section in every]
    known = list(dict.fromkeys(itertools.chain(*names)))
    # `name` may be the last part alone, as a recipe has it below its section.
    near = [place for place in known if place.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known here: {', '.join(dict.fromkeys(section.name for section in every if '.' not in section.name))}"


def _may_be(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " | ".join(map(_may_be, schema["anyOf"]))
    if "const" in schema:
        return on_one_line(schema["const"])
    if "enum" in schema:
        return " | ".join(map(on_one_line, schema["enum"]))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema["items"], None]
        return f"[{', '.join('...' if item is None else _may_be(item) for item in items)}]"
    if schema.get("type") == "object":
        value = schema.get("additionalProperties")
        return f"{{NAME = {_may_be(value) if isinstance(value, Mapping) else 'any value'}}}"
    return _word(schema) + _bounds(schema)


def _word(schema: Mapping[str, Any]) -> str:
    if ":" in schema.get("pattern", ""):
        return "file.py:NAME | package.module:NAME"
    if schema.get("format") == "path":
        return "path"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true | false", "null": "none"}
    return words[schema["type"]]


def _bounds(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" {low:g} to {high:g}"
    ends = [(" from", low), (" above", above), (" up to", high), (" below", below)]
    return ",".join(f"{word} {end:g}" for word, end in ends if end is not None)
