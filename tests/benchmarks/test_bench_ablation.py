"""`compress bench ablation`: each change to a recipe is trained by itself, kept, and compared with the recipe."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from support.datasets import write_dataset
from typer.testing import CliRunner

from benchmarks.ablation.changes import changed, read_changes
from benchmarks.report.ablation.results import AblationReport
from compress.anymodel import evaluate
from compress.cli.main import app
from compress.data.augment import Augment
from compress.data.folder import open_dataset
from compress.recipe import Recipe, builtin_recipes
from compress.settings.model import EncoderUNetSettings
from compress.steps import read_record
from compress.train.schedule import Schedule
from export.errors import RecipeError, SegpressError, UsageError, WorkFailedError

ROOT = Path(__file__).resolve().parents[2]
Records = dict[str, dict[str, Any] | None]

RECIPE = """
[model]
base = 2
depth = 1
[train]
epochs = 2
batch_size = 4
learning_rate = 0.02
ema_decay = 0.0
precision = "float32"
"""

CHANGES = """
[losses]
dice-and-ce = ["train.loss.dice_weight=1"]
focal = ["train.loss.pixel=focal", "train.loss.dice_weight=0"]
nobody-wrote-it = ["train.loss.own=nowhere.py:loss"]
[schedules]
slow = ["train.learning_rate=1e-9"]
"""

# State is saved after every step here, so that a kill has something to resume.
PROGRAM = """
from compress.train import state
state.SECONDS_BETWEEN_SAVES, state.SHARE_OF_THE_TIME = 0.0, float("inf")
from compress.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ablation")
    write_dataset(path / "discs", counts={"train": 8, "val": 3, "test": 4}, size=(16, 16))
    (path / "recipe.toml").write_text(RECIPE)
    (path / "changes.toml").write_text(CHANGES)
    return path


def words(place: Path, *more: object) -> list[str]:
    given = ("bench", "ablation", "--data", place / "discs", "--recipe", place / "recipe.toml", "--out", place / "out")
    return [*map(str, given), "--changes", str(place / "changes.toml"), "--seeds", "1", *map(str, more)]


def ablation(place: Path, *more: object) -> AblationReport:
    """The report of a run in which one change fails."""
    done = CliRunner().invoke(app, [*words(place, *more), "--json"])
    assert isinstance(done.exception, WorkFailedError), done.output
    assert "losses.nobody-wrote-it" in str(done.exception)
    report = AblationReport.model_validate(json.loads(done.stdout))
    assert report == AblationReport.model_validate_json((place / "out" / "report.json").read_text())
    return report


def records(place: Path) -> Records:
    """The records of finished trainings, by folder."""
    trainings = place / "out" / "trainings"
    folders = (path.parent for path in trainings.rglob("step.json") if ".partial" not in str(path))
    return {str(folder.relative_to(trainings)): read_record(folder) for folder in folders}


@pytest.fixture(scope="module")
def killed(place: Path) -> tuple[int, Records]:
    """Exit status and finished trainings of the command, run in its own process and killed in its second training."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words(place, "--seeds", "losses=2", "--set", "train.epochs=2")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    try:
        while not (place / "out" / "trainings" / "losses" / "focal" / ".seed-0.partial" / "precision.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
    return process.wait(), records(place)


@pytest.fixture(scope="module")
def report(place: Path, killed: tuple[int, Records]) -> AblationReport:
    return ablation(place, "--seeds", "losses=2")


def test_a_killed_ablation_goes_on_where_it_was(
    place: Path, killed: tuple[int, Records], report: AblationReport
) -> None:
    status, whole = killed
    assert status == -signal.SIGKILL
    assert whole.keys() == {"base/seed-0"}
    assert whole.items() <= records(place).items()
    trainings = place / "out" / "trainings"
    stamps = {path: path.stat().st_mtime_ns for path in trainings.rglob("*") if path.is_file()}
    assert ablation(place, "--seeds", "losses=2").variants == report.variants
    assert {path: path.stat().st_mtime_ns for path in trainings.rglob("*") if path.is_file()} == stamps


def test_every_change_is_trained_by_itself_and_scored_on_both_splits(place: Path, report: AblationReport) -> None:
    by_name = {variant.name: variant for variant in report.variants}
    assert list(by_name) == ["dice-and-ce", "focal", "nobody-wrote-it", "slow"]
    assert by_name["dice-and-ce"].same_as_base
    assert [run.seed for run in report.base] == [0, 1]
    assert [run.seed for run in by_name["focal"].runs] == [0, 1]
    assert [run.seed for run in by_name["slow"].runs] == [0]
    trainings = place / "out" / "trainings"
    assert not (trainings / "losses" / "dice-and-ce").exists()
    plain = Recipe.load(str(place / "recipe.toml")).train
    focal = plain.loss.model_copy(update={"pixel": "focal", "dice_weight": 0.0})
    for folder, run, loss, rate in (
        ("base/seed-0", report.base[0], plain.loss, 0.02),
        ("losses/focal/seed-1", by_name["focal"].runs[1], focal, 0.02),
        ("schedules/slow/seed-0", by_name["slow"].runs[0], plain.loss, 1e-9),
    ):
        record = read_record(trainings / folder)
        assert record is not None
        settings = record["settings"]["train"]
        assert (settings["loss"], settings["learning_rate"]) == (loss.model_dump(mode="json"), rate)
        assert settings["seed"] == run.seed
        assert (run.val, run.best_epoch, run.seconds) == (
            record["result"]["miou"],
            record["result"]["best_epoch"],
            record["seconds"],
        )
        assert run.test == evaluate(trainings / folder, place / "discs", split="test").miou
    gained = report.differences_test["schedules.slow"].mean
    assert gained == pytest.approx(by_name["slow"].runs[0].test - fmean(run.test for run in report.base))


def test_a_change_that_fails_does_not_lose_the_others(place: Path, report: AblationReport) -> None:
    (failed,) = [variant for variant in report.variants if variant.failure is not None]
    assert (failed.name, failed.runs) == ("nobody-wrote-it", ())
    assert "no such file" in str(failed.failure)
    text = (place / "out" / "report.md").read_text()
    assert "## What failed" in text
    assert "| nobody-wrote-it | 0 |" in text
    assert (place / "out" / "differences.png").read_bytes().startswith(b"\x89PNG")


def test_another_setting_of_the_base_is_another_training(place: Path, report: AblationReport) -> None:
    again = ablation(place, "--set", "train.learning_rate=1e-9", "--group", "losses")
    assert {variant.group for variant in again.variants} == {"losses"}
    assert again.base[0].test != report.base[0].test
    assert again.deviation is None
    assert again.differences_test["losses.focal"].judgement == "not known"


@pytest.mark.parametrize(
    ("changes", "more", "problem"),
    [
        ("losses = 3", (), "losses: must be a table of changes"),
        ("", (), "there is no group in it"),
        ("[a", (), "not TOML"),
        ('[a]\nb = "train.epochs=1"', (), "a.b: must be a list of settings"),
        ('[a]\n"b/c" = []', (), "a.b/c: names consist of letters"),
        ("[base]\nb = []", (), "give the group another"),
        ('[a]\nb = ["train.epoch=1"]\nc = ["train.epochs=0"]', (), "c: train.epochs = 0"),
        ('[a]\nb = ["train.epoch=1"]\nc = ["train.epochs=0"]', (), "did you mean 'epochs'?"),
        (CHANGES, ("--group", "encoders"), "it has losses, schedules"),
        (CHANGES, ("--seeds", "encoders=2"), "no change is in the group encoders"),
        (CHANGES, ("--seeds", "losses=0"), "a change needs one training or more, got 0"),
    ],
)
def test_a_list_that_means_nothing_is_refused_before_any_training(
    tmp_path: Path, place: Path, changes: str, more: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "changes.toml").write_text(changes)
    given = ("--changes", tmp_path / "changes.toml", "--out", tmp_path / "out", *more)
    done = CliRunner().invoke(app, words(place, *given))
    assert isinstance(done.exception, RecipeError | UsageError)
    assert done.exception.exit_status == 2
    assert problem in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_recipe_may_say_where_the_data_are(place: Path, tmp_path: Path) -> None:
    (tmp_path / "changes.toml").write_text('[schedules]\nslow = ["train.learning_rate=1e-9"]\n')
    given = ["--recipe", place / "recipe.toml", "--changes", tmp_path / "changes.toml", "--out", tmp_path / "out"]
    more = ["--seeds", "1", "--set", "train.epochs=1", "--set", f"data.path={place / 'discs'}", "--json"]
    done = CliRunner().invoke(app, ["bench", "ablation", *map(str, given), *more])
    assert json.loads(done.stdout)["data"]["fingerprint"] == open_dataset(place / "discs").fingerprint


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegpressError, match="no such file"):
        read_changes(tmp_path / "changes.toml")


@pytest.mark.parametrize("number", ["many", "=3", "losses=", "losses=-1"])
def test_a_number_of_seeds_is_a_number(place: Path, number: str) -> None:
    done = CliRunner().invoke(app, words(place, "--seeds", number))
    assert done.exit_code == 2
    assert "neither N nor GROUP=N" in done.output


@pytest.mark.parametrize("recipe", [None, *builtin_recipes()])
def test_our_own_list_makes_another_recipe_of_every_one_with_each_change_of_a_group(recipe: str | None) -> None:
    for group in {change.group for change in read_changes()}:
        changes = read_changes(groups=[group])
        made = {recipe.to_toml() for recipe in changed(recipe, (), changes, named="our own list")}
        assert len(made) == len(changes) > 1


def test_a_change_of_our_own_list_changes_what_it_says() -> None:
    changes = {str(change): list(change.settings) for change in read_changes()}
    nothing = Recipe.load("dsb2018", changes["augmentation.none"]).train.augment
    images_NCHW, masks_NHW = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randint(2, (4, 16, 16)).to(torch.uint8)
    same = Augment(nothing)(images_NCHW.clone(), masks_NHW.clone())
    assert torch.equal(same[0], images_NCHW)
    assert torch.equal(same[1], masks_NHW)
    constant = Schedule(Recipe.load(None, changes["schedules.constant"]).train, steps_an_epoch=10)
    assert [constant.pace(step).rate for step in (100, 599)] == pytest.approx([1e-3, 1e-3], rel=1e-6)
    assert isinstance(Recipe.load("camvid", changes["encoders.resnet18-untrained"]).model, EncoderUNetSettings)
