"""`compress settings`"""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from compress.cli.common import JsonOption, emit
from compress.reference import OWN, Section, sections

INDENT = 4


def command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A section, such as train.loss, or one setting; default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the settings that a recipe and --set take: default, allowed values, and purpose."""
    found = sections(name)
    console = Console()
    if as_json or not console.is_terminal:
        text = "\n".join(" " * indent + line.plain for line, indent in _lines(found))
        emit({"sections": [section.as_tree() for section in found]}, text, as_json=as_json)
    else:
        for line, indent in _lines(found):
            console.print(Padding(line, (0, 0, 0, indent)), highlight=False)


def _lines(found: list[Section]) -> Iterator[tuple[Text, int]]:
    """Each with how far it is indented."""
    for number, section in enumerate(found):
        if number:
            yield Text(), 0
        where = "" if section.model is None else f", where model.factory is {_factory(section.model)}"
        yield Text.assemble((f"[{section.name}]{where}", "bold cyan")), 0
        if section.doc:
            yield Text(section.doc, style="dim"), 0
        for setting in section.settings:
            yield Text.assemble((str(setting), "bold"), f"  ({setting.may_be})"), 0
            if setting.doc:
                yield Text(setting.doc), INDENT


def _factory(model: str) -> str:
    return "one of your own" if model == OWN else model
