"""`compress settings`: every setting with its default, what it may be and what it is for."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress.cli.main import app
from compress.recipe import Recipe, leaves
from compress.reference import Section, sections
from export.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def all_settings() -> Iterator[tuple[Section, Any]]:
    return ((section, setting) for section in sections() for setting in section.settings)


def found(name: str) -> str:
    (section,) = sections(name)
    (setting,) = section.settings
    return f"{setting} ({setting.may_be})"


def test_every_setting_of_a_recipe_is_there_with_its_default() -> None:
    for factory in ("unet", "unetpp", "encoder-unet"):
        recipe = Recipe.model_validate({"model": {"factory": factory}}).model_dump(mode="json")
        told = {
            setting.name: setting.default for section, setting in all_settings() if section.model in (None, factory)
        }
        assert told == dict(leaves(recipe))


def test_every_setting_and_every_section_is_explained() -> None:
    assert not [section.name for section in sections() if not section.doc]
    assert not [setting.name for _, setting in all_settings() if not setting.doc]
    assert not [setting.name for _, setting in all_settings() if not setting.may_be]


def test_a_default_as_it_is_printed_is_taken_by_set() -> None:
    lines = [
        str(setting).replace(" = ", "=", 1) for section, setting in all_settings() if section.model in (None, "unet")
    ]
    assert Recipe.load(None, lines) == Recipe()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("train.epochs", "train.epochs = 60 (integer from 1)"),
        ("train.warmup", "train.warmup = 0.05 (number 0 to 1)"),
        ("train.ema_decay", "train.ema_decay = 0.999 (number from 0, below 1)"),
        ("train.patience", "train.patience = none (integer from 1 | none)"),
        ("train.precision", 'train.precision = "auto" ("auto" | "float32" | "bfloat16" | "float16")'),
        ("train.loss.own", "train.loss.own = none (file.py:NAME | package.module:NAME | none)"),
        ("train.loss.class_weights", '... = "equal" ("equal" | "balanced" | [number from 0, ...])'),
        ("data.size", "data.size = none ([integer from 1, integer from 1] | none)"),
        ("data.path", "data.path = none (path | none)"),
        ("prune.min_iou", "prune.min_iou = {} ({NAME = number 0 to 1})"),
        ("prune.finetune.epochs", "prune.finetune.epochs = 15 (integer from 1)"),
        ("quantize.rewrites", "quantize.rewrites = true (true | false)"),
        ("model.arguments", "model.arguments = {} ({NAME = any value})"),
    ],
)
def test_types_and_bounds_are_told_in_words(name: str, says: str) -> None:
    assert found(name) == says.replace("...", name, 1) if says.startswith("...") else found(name) == says


def test_a_section_comes_with_those_inside_it_and_none_that_only_begins_alike() -> None:
    assert [section.name for section in sections("prune.finetune.loss")] == ["prune.finetune.loss"]
    assert [section.name for section in sections("quantize")][:2] == ["quantize", "quantize.finetune"]
    assert {section.model for section in sections("model.base")} == {"unet", "unetpp", "encoder-unet"}
    with pytest.raises(UsageError):
        sections("trai")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("train.epoch", "train.epoch: no such setting; did you mean 'train.epochs'?"),
        ("mixup", "did you mean 'train.augment.mixup'?"),
        ("zzz", "known here: data, model, train, prune, quantize, export, budget, bench"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("?", r"\?")):
        sections(name)
    done = subprocess.run(
        [sys.executable, "-m", "compress.cli.main", "settings", name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_piped_it_is_plain_and_a_setting_is_a_line() -> None:
    done = CliRunner().invoke(app, ["settings", "train.swa"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "[train.swa]"
    assert "train.swa.start = none  (number from 0, below 1 | none)" in lines
    assert "    Share of the epochs after which averaging begins, such as 0.75; none: no averaging." in lines
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_lines_are_as_long_as_it_is_wide(width: int) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "compress.cli.main", "settings", "train.loss"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(width), "TERM": "xterm"}
    with subprocess.Popen(words, stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.wait() == 0
    os.close(ours)
    assert b"\x1b[1m" in shown
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", shown).decode().splitlines()
    longest = max(len(line.rstrip()) for line in plain)
    assert width - 15 < longest <= width
    assert all(line.startswith((" ", "train.loss.")) for line in plain if "arXiv" in line)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


def test_programs_get_one_object() -> None:
    done = CliRunner().invoke(app, ["settings", "prune.finetune.epochs", "--json"])
    tree = json.loads(done.stdout)
    assert [section["name"] for section in tree["sections"]] == ["prune.finetune"]
    assert tree["sections"][0]["settings"] == [
        {
            "name": "prune.finetune.epochs",
            "may_be": "integer from 1",
            "schema": {"minimum": 1, "type": "integer"},
            "doc": "Passes over the training images.",
            "default": 15,
        }
    ]
