"""The documents and the program say the same."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

from compress.cli.main import app
from compress.recipe import Recipe
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "compress/README.md",
    "serve/README.md",
    "serve/deploy/README.md",
    "benchmarks/README.md",
)
SHELLS = ("sh", "bash", "console")

# Click's groups and commands, as Any: typer brings its own copy of click and does not export its types.
CLI: Any = typer.main.get_command(app)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block."""
    yield from re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)


def typed_lines(text: str) -> Iterator[str]:
    """What a person types into a shell: what follows a prompt, or every line of a shell block without prompts."""
    for language, content in blocks(text):
        lines = [line.strip() for line in content.replace("\\\n", " ").splitlines()]
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from prompted or (lines if language in SHELLS else [])


def shell_commands(line: str) -> Iterator[list[str]]:
    """The commands of a shell line, each as a list of words, without redirections and leading assignments."""
    lexer = shlex.shlex(re.sub(r"\d*>>?\s*\S+", " ", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= set("();|&"):
            words += [] if not words and re.fullmatch(r"\w+=.*", token) else [token]
        elif words:
            yield words
            words = []


def typed(text: str, *programs: str) -> list[list[str]]:
    """The arguments of every use of `programs` in the blocks of a text."""
    return [
        words[1:]
        for line in typed_lines(text)
        for words in shell_commands(line)
        if words[0].removeprefix(".venv/bin/") in programs
    ]


def mentioned(text: str) -> list[list[str]]:
    """The arguments of every `compress ...` within a sentence or a table."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [span.split()[1:] for span in re.findall(r"`((?:compress|segpress) [^`\n]+)`", prose)]


def walk(words: list[str]) -> tuple[Any, str, list[str]]:
    """The command that `words` name, its full name, and the remaining words."""
    command, name, rest = CLI, "compress", list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command, name = command.commands[rest[0]], f"{name} {rest.pop(0)}"
    return command, name, rest


def refusal(words: list[str]) -> str | None:
    """Why the command line would refuse these words; None when it would not. Nothing is run."""
    command, name, rest = walk(words)
    if hasattr(command, "commands") and rest[:1] not in (["--help"], ["-h"]):
        return f"{name} needs a command, one of {', '.join(command.commands)}; it got {rest}"
    try:
        context = command.make_context(name, rest)
        Recipe.load(None, context.params.get("settings"))
    except typer.Exit:  # --help
        return None
    except Exception as error:
        return f"{name}: {error}"
    return None


def unknown(words: list[str]) -> str | None:
    """The first command or option of a mention that does not exist; a mention may leave out required arguments."""
    command, name, rest = walk(words)
    if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        return f"{name} {rest[0]}"
    known = {"--help", "-h", *(option for parameter in command.params for option in parameter.opts)}
    return next((f"{name} {word}" for word in rest if word.startswith("-") and word not in known), None)


def commands(command: Any = CLI, name: str = "compress") -> Iterator[tuple[str, Any]]:
    """Every group and command with its full name."""
    yield name, command
    for own, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{name} {own}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_command_line_takes_every_command_of_a_document(document: str) -> None:
    text = text_of(document)
    refused = [reason for words in typed(text, "compress", "segpress") if (reason := refusal(words))]
    assert not refused
    assert not [name for words in mentioned(text) if (name := unknown(words))]


def test_every_command_stands_in_the_readme() -> None:
    text = text_of("README.md")
    shown = {walk(words)[1] for words in [*typed(text, "compress", "segpress"), *mentioned(text)]}
    assert {name for name, command in commands() if not hasattr(command, "commands")} - shown == set()


def test_every_command_and_every_parameter_has_help() -> None:
    silent = [name for name, command in commands() if not (command.help or "").strip()]
    silent += [
        f"{name} {parameter.opts[0]}"
        for name, command in commands()
        for parameter in command.params
        if not (parameter.help or "").strip()
    ]
    assert not silent


@pytest.mark.parametrize(
    ("name", "called", "at_least"),
    [
        ("serve", ServeSettings, 13),
        ("bench load", "benchmarks.load.bench:bench", 3),
        ("bench soak", "benchmarks.load.soak:soak", 2),
        ("bench peers", "benchmarks.peers.bench:bench", 2),
        ("bench ops", "benchmarks.ops.bench:bench", 3),
        ("bench latency", "benchmarks.latency:bench", 3),
        ("bench amp", "benchmarks.amp.bench:bench", 3),
    ],
)
def test_an_option_has_the_default_of_what_it_calls(
    name: str, called: type[ServeSettings] | str, at_least: int
) -> None:
    """The command line repeats defaults, because it must not import what it calls before that is needed."""
    if isinstance(called, str):
        module, _, function = called.partition(":")
        parameters = inspect.signature(getattr(import_module(module), function)).parameters
        defaults = {key: each.default for key, each in parameters.items() if each.default is not each.empty}
    else:
        defaults = {key: field.default for key, field in called.model_fields.items()}
    command, _, _ = walk(name.split())
    given = {parameter.name: parameter.default for parameter in command.params if parameter.default is not None}
    shared = given.keys() & defaults.keys()
    assert len(shared) >= at_least
    assert {key: given[key] for key in shared} == {key: defaults[key] for key in shared}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_points_at_exists(document: str) -> None:
    text = text_of(document)
    targets = re.findall(r"^([a-z]+):", text_of("Makefile"), flags=re.MULTILINE)
    assert {word for words in typed(text, "make") for word in words if not re.match(r"\w+=", word)} <= set(targets)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    files = re.findall(r"`((?:compress|benchmarks|serve|export|tests)/[\w./]+)`", text)
    assert not [file for file in files if not (ROOT / file).exists()]
    names = re.findall(r"`((?:compress|benchmarks|serve|export)(?:\.\w+)+)(?:\([^`]*)?`", text)
    assert not [name for name in names if not resolves(name)]


def anchors(text: str) -> set[str]:
    """What a link may name behind its `#`: the headings, in lower case, with hyphens and without punctuation."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_link_to_a_section_finds_it(document: str) -> None:
    links = re.findall(r"\]\(((?:[^)#\s]+\.md)?)#([^)\s]+)\)", text_of(document))
    places = [((ROOT / document).parent / file if file else ROOT / document, anchor) for file, anchor in links]
    assert not [(place, anchor) for place, anchor in places if anchor not in anchors(place.read_text(encoding="utf-8"))]


def test_every_committed_report_is_told_of() -> None:
    told = "".join(text_of(document) for document in DOCUMENTS)
    reports = [path.parent.name for path in (ROOT / "benchmarks" / "results").glob("*/report.md")]
    assert reports
    assert not [name for name in reports if f"results/{name}/report.md" not in told]


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return hasattr(import_module(module), attribute)
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_recipe_in_a_document_is_one(document: str, tmp_path: Path) -> None:
    for number, (_, content) in enumerate(block for block in blocks(text_of(document)) if block[0] == "toml"):
        recipe = tmp_path / f"{number}.toml"
        recipe.write_text(content)
        Recipe.load(recipe)


# The checks above must find mistakes.

MISTAKEN = [
    "fly",
    "bench speed runs/demo/int8",
    "bench",
    "verify",
    "verify runs/demo/int8 --hard",
    "evaluate runs/demo/int8 --data d --split all",
    "serve runs/demo/int8 --port http",
    "run --set train.epoch=3",
]


@pytest.mark.parametrize("line", MISTAKEN)
def test_a_command_that_would_be_refused_is_found(line: str) -> None:
    text = f"```sh\nmake demo && .venv/bin/compress {line}  # why not\n```\n"
    assert [refusal(words) is not None for words in typed(text, "compress")] == [True]


@pytest.mark.parametrize("mention", ["fly", "bench speed", "prune --speed 4", "verify BUNDLE --hard"])
def test_a_mention_of_what_does_not_exist_is_found(mention: str) -> None:
    assert [unknown(words) is not None for words in mentioned(f"Say `compress {mention}`, and wait.")] == [True]


def test_output_and_pictures_are_no_commands() -> None:
    picture = "```\ndata -> compress train | compress fly\n```\n"
    transcript = "```console\n$ A=1 compress run \\\n    --out x 2> log >&1 &\ncompress: it's a line of output\n```\n"
    assert typed(picture + transcript, "compress") == [["run", "--out", "x"]]


def test_the_table_of_limits_has_all_of_them_with_their_defaults() -> None:
    table = text_of("serve/README.md").partition("## Limits")[2].partition("## Performance")[0]
    rows = [re.findall(r"`([a-z_]+)(?:=([0-9]+))?`", line) for line in table.splitlines() if line.startswith("| ")]
    told = dict(found[0] for found in rows if found)
    defaults = ServeSettings().model_dump()
    # These settings say how the server works and stops, not what it refuses.
    others = {"threads_per_run", "port", "max_batch", "batch_delay_seconds", "size_bucket", "grace_seconds"}
    limits = {name for name, value in defaults.items() if type(value) in (int, float)} - others
    assert told.keys() == limits
    assert {name: float(value) for name, value in told.items() if value} == {
        name: defaults[name] for name in limits - {"concurrency"}
    }


def reasons_in(source: str) -> set[str]:
    """The reasons that a module gives to problems."""
    places = {"ProblemError": 1, "QueueFullError": 0, "_unauthorized": 0}
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [(call.func.id, call.args) for call in calls if isinstance(call.func, ast.Name)]
    given = [arguments[places[name]] for name, arguments in named if name in places]
    return {str(argument.value) for argument in given if isinstance(argument, ast.Constant)}


def test_every_reason_of_a_refusal_is_told() -> None:
    table = text_of("serve/README.md").partition("## What a refusal says")[2].partition("## Limits")[0]
    rows = [row.split("|")[2] for row in table.splitlines() if re.match(r"\| \d", row)]
    told = [word for row in rows for word in re.findall(r"`([a-z_]+)`", row)]
    of_images = {"unsupported", "channels"}
    found = of_images.union(*(reasons_in(path.read_text()) for path in (ROOT / "serve").rglob("*.py")))
    # "http" is the reason for statuses that no route gives; request_id is not a reason.
    assert set(told) - {"request_id"} == found - {"http"}
    assert len(told) == len(set(told))
