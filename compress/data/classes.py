"""classes.json: the classes of a dataset, and how its masks spell them.

    {
      "classes":      ["background", "nucleus"],
      "ignore_index": 11 | null,
      "palette":      {"background": [0, 0, 0], "nucleus": [255, 0, 0], "void": [128, 128, 128]} | null,
      "values":       {"0": "background", "255": "nucleus"} | null,
      "group":        "^(patient\\d+)_" | null
    }

Only `classes` is required. A single-channel mask holds class numbers, counted from 0, and
`ignore_index` where a pixel is void. If it holds other numbers, `values` gives the class of each, or
"void". A colour mask needs `palette`, with the colour of every class, and of "void" if it occurs; for
masks of numbers the palette only sets the colours of overlays. `group` is a regular expression searched
for in file names without suffix; files in which it matches the same text (its first group, if it has one)
are kin, and a split by hash keeps them together. Other keys, such as "name", are kept but not read.
"""

import colorsys
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError, model_validator

from export.errors import DatasetError
from export.scoring import VOID

FILE = "classes.json"
VOID_NAME = "void"
"""How `palette` and `values` name void; no class can have this name."""

MAX_CLASSES = VOID

Byte = Annotated[StrictInt, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]

_EXPECTED = {
    "classes": 'a list of names, e.g. ["background", "nucleus"]',
    "ignore_index": "the number 0..255 that void pixels have in the masks, or null if there are none",
    "palette": 'a colour for each class, e.g. {"background": [0, 0, 0], "nucleus": [255, 0, 0]}, or null',
    "values": 'a class for each number in the masks, e.g. {"0": "background", "255": "nucleus"}, or null',
    "group": 'a regular expression for file names, e.g. "^(patient[0-9]+)_", or null',
}


class ClassTable(BaseModel):
    """What classes.json says, checked."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    classes: tuple[StrictStr, ...]
    """Names; the position of each is its number."""
    ignore_index: Byte | None = None
    """The number of void pixels in single-channel masks."""
    palette: dict[str, Colour] | None = None
    """RGB of each class, and of "void"."""
    values: dict[int, str] | None = None
    """The class, or "void", of each number in single-channel masks; None: numbers are class numbers."""
    group: StrictStr | None = None
    """Regular expression; what it matches in a file's stem names its kin."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a classes.json.

        Raises DatasetError with everything that is wrong with it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            example = '{"classes": ["background", "nucleus"], "ignore_index": null}'
            raise DatasetError(path, [f"missing; write one that names the classes, such as {example}"]) from None
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(path, [f"not JSON: {error}; mend it at that place"]) from None
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise DatasetError(path, [f'holds a {kind}; write an object, {{"classes": [...]}}, around it'])
        problems = list(_misspelt(content))
        try:
            table = cls.model_validate(content)
        except ValidationError as error:
            problems += _validation_problems(error)
            raise DatasetError(path, problems) from None
        if problems:
            raise DatasetError(path, problems)
        return table

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        problems = [
            *_class_problems(self.classes),
            *_value_problems(self),
            *_palette_problems(self.classes, self.palette),
            *_group_problems(self.group),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def number_of(self, name: str) -> int:
        """The number that a class name, or "void", has inside the program."""
        return VOID if name == VOID_NAME else self.classes.index(name)

    def numbers(self) -> dict[int, int]:
        """The numbers in single-channel masks -> class number, or VOID."""
        if self.values is None:
            numbers = {number: number for number in range(len(self.classes))}
        else:
            numbers = {number: self.number_of(name) for number, name in self.values.items()}
        if self.ignore_index is not None:
            numbers[self.ignore_index] = VOID
        return numbers

    def kin(self, stem: str) -> str | None:
        """The kin of `stem`: what `group` matches in it, None if that is nothing; without `group`, `stem` itself."""
        if self.group is None:
            return stem
        match = re.search(self.group, stem)
        if match is None:
            return None
        found = match.group(1) if match.re.groups else match.group(0)
        return found or None

    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of each class, for overlays: as declared, or else easy to tell apart."""
        if self.palette is not None:
            return tuple(self.palette[name] for name in self.classes)
        return default_colours(len(self.classes))


def default_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` RGB colours, all different, neighbours far apart in hue."""
    # Steps of the golden ratio never land near one another; saturation and brightness set later rounds apart.
    colours = []
    for index in range(count):
        hue = (0.58 + index * 0.618033988749895) % 1.0
        saturation, value = ((0.75, 0.95), (0.9, 0.65), (0.45, 1.0))[index // 8 % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)


def _misspelt(content: dict[str, object]) -> Iterable[str]:
    for key in content.keys() - _EXPECTED.keys():
        likely = difflib.get_close_matches(key.lower().replace("-", "_"), _EXPECTED, n=1, cutoff=0.8)
        if likely:
            yield f'unknown key "{key}"; write "{likely[0]}"'


def _validation_problems(error: ValidationError) -> Iterable[str]:
    for item in error.errors():
        if item["type"] == "value_error":
            yield from str(item["ctx"]["error"]).split("\n")
        else:
            field = str(item["loc"][0])
            place = ".".join(str(part) for part in item["loc"] if part != "[key]")
            yield f'"{place}": {item["msg"]}; write {_EXPECTED.get(field, "what it asks for")}'


def _class_problems(classes: tuple[str, ...]) -> Iterable[str]:
    if len(classes) < 2:
        yield f'"classes" names {len(classes)}; name at least two, the background is one of them'
    if len(classes) > MAX_CLASSES:
        yield f'"classes" names {len(classes)}; at most {MAX_CLASSES} fit in a mask of bytes beside void'
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        yield f'"classes" repeats {_quoted(repeated)}; give each class a name of its own'
    if any(not name.strip() for name in classes):
        yield '"classes" holds an empty name; give every class a name'
    if VOID_NAME in classes:
        yield (
            f'"classes" holds "{VOID_NAME}", which is no class; take it out, and give its number as "ignore_index", '
            'or use "values" if the numbers of the other classes would move'
        )


def _value_problems(table: ClassTable) -> Iterable[str]:
    values = table.values
    if values is None:
        if table.ignore_index is not None and table.ignore_index < len(table.classes):
            yield (
                f'"ignore_index" {table.ignore_index} is also the number of class '
                f'"{table.classes[table.ignore_index]}"; use the number that void really has in the masks, '
                'or say with "values" what each number means'
            )
        return
    outside = [number for number in values if not 0 <= number <= 255]
    if outside:
        yield f'"values" gives {outside}, which no mask of bytes can hold; use numbers 0..255'
    unknown = [name for name in dict.fromkeys(values.values()) if name not in (*table.classes, VOID_NAME)]
    if unknown:
        yield f'"values" gives {_quoted(unknown)}, not among the classes; use their names, or "{VOID_NAME}"'
    lacking = [name for name in table.classes if name not in values.values()]
    if lacking:
        yield f'"values" gives no number for {_quoted(lacking)}; add one for each class'
    if table.ignore_index is not None and values.get(table.ignore_index, VOID_NAME) != VOID_NAME:
        yield (
            f'"ignore_index" {table.ignore_index} is class "{values[table.ignore_index]}" in "values"; '
            "let the number mean one of the two"
        )


def _palette_problems(classes: tuple[str, ...], palette: dict[str, Colour] | None) -> Iterable[str]:
    if palette is None:
        return
    unknown = [name for name in palette if name not in (*classes, VOID_NAME)]
    if unknown:
        yield f'"palette" colours {_quoted(unknown)}, not among the classes; use their names, or "{VOID_NAME}"'
    lacking = [name for name in classes if name not in palette]
    if lacking:
        yield f'"palette" has no colour for {_quoted(lacking)}; add one for each class'
    names_by_colour: dict[Colour, list[str]] = {}
    for name, colour in palette.items():
        names_by_colour.setdefault(colour, []).append(name)
    for colour, names in names_by_colour.items():
        if len(names) > 1:
            yield f'"palette" gives {list(colour)} to {_quoted(names)}; give each a colour of its own'


def _group_problems(group: str | None) -> Iterable[str]:
    if group is None:
        return
    try:
        re.compile(group)
    except re.error as error:
        yield f'"group" {group!r} is not a regular expression: {error}; write {_EXPECTED["group"]}'


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
