"""What an earlier run left is compared with the data before any training: what is made anew is named, and no
interrupted training is lost."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.recipes import TINY_SETTINGS

from compress import pipeline
from compress.data.folder import open_dataset
from compress.earlier import PARENTS, RECIPE, look_at_data
from compress.recipe import Recipe
from compress.steps import TRAINING_STATE, StepPlan, running
from export.errors import BusyError, DatasetError, UsageError, WorkFailedError

NOW, BEFORE = "ab" * 32, "cd" * 32
TOLD = "the data is not that of the earlier run; these steps are made again: "


def finish(out: Path, name: str, data: str) -> None:
    plan = StepPlan(name, {"data": data}, {})
    with running(out / name, plan) as step:
        step.record(plan, {})


def interrupt(out: Path, name: str, data: str, *files: str) -> None:
    """Leave an interrupted step with `files` in its folder."""
    with contextlib.suppress(KeyboardInterrupt), running(out / name, StepPlan(name, {"data": data}, {})) as step:
        for file in files:
            (step.path / file).touch()
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("finished", "anew"),
    [
        ({}, []),
        (dict.fromkeys(PARENTS, NOW), []),
        (dict.fromkeys(PARENTS, BEFORE), [*PARENTS]),
        ({"dense": BEFORE}, ["dense"]),
        ({"dense": BEFORE, "dense-fp32": BEFORE, "dense-int8": NOW}, ["dense", "dense-fp32", "dense-int8"]),
        ({**dict.fromkeys(PARENTS, NOW), "dense": BEFORE}, [*PARENTS]),
        ({**dict.fromkeys(PARENTS, NOW), "pruned": BEFORE}, ["pruned", "pruned-fp32", "int8", "report"]),
        ({**dict.fromkeys(PARENTS, NOW), "dense-int8": BEFORE}, ["dense-int8", "report"]),
    ],
)
def test_what_was_made_of_other_data_and_what_follows_from_it_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], finished: Mapping[str, str], anew: list[str]
) -> None:
    for name, data in finished.items():
        finish(tmp_path, name, data)
    look_at_data(tmp_path, NOW)
    said = " ".join(capfd.readouterr().err.split())
    assert said == (TOLD + ", ".join(anew) if anew else "")


@pytest.mark.parametrize(
    ("finished", "name", "data", "refused"),
    [
        ({}, "dense", BEFORE, True),
        ({"dense": BEFORE}, "pruned", BEFORE, True),
        ({"dense": NOW}, "pruned", BEFORE, True),
        # Its parent, which is its teacher too, is made anew.
        ({"dense": BEFORE}, "pruned", NOW, True),
        ({"dense": BEFORE, "pruned": BEFORE}, "int8", NOW, True),
        ({"dense": BEFORE}, "dense", NOW, False),
        ({"dense": NOW, "pruned": BEFORE}, "dense-int8", NOW, False),
        ({"dense": NOW}, "pruned", NOW, False),
    ],
)
def test_an_interrupted_training_that_could_not_go_on_is_refused(
    tmp_path: Path, finished: Mapping[str, str], name: str, data: str, refused: bool
) -> None:
    for folder, of in finished.items():
        finish(tmp_path, folder, of)
    interrupt(tmp_path, name, data, TRAINING_STATE)
    partial = tmp_path / f".{name}.partial"
    words = f"{partial} holds an interrupted training of an earlier run on other data.*compress run .* continues it"
    with pytest.raises(UsageError, match=words) if refused else contextlib.nullcontext():
        look_at_data(tmp_path, NOW)
    assert (partial / TRAINING_STATE).exists()


def test_what_costs_no_hours_may_be_thrown_away_and_what_noted_nothing_is_left_to_its_step(tmp_path: Path) -> None:
    interrupt(tmp_path, "dense-fp32", BEFORE, "model.onnx")
    interrupt(tmp_path, "pruned", BEFORE, TRAINING_STATE)
    (tmp_path / ".pruned.partial" / ".key").write_text(BEFORE)  # all that an earlier version wrote
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "step.json").write_text('{"step": "of another program", "inputs": ["data"]}')
    look_at_data(tmp_path, NOW)


def test_a_run_looks_at_its_data_before_it_trains(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def begin(*_: object) -> None:
        raise WorkFailedError("training began")

    def run(*settings: str) -> str:
        """Run as far as the training; returns what was printed before it."""
        chosen = Recipe.load(None, [*TINY_SETTINGS, f"data.path={data}", *settings])
        with pytest.raises(WorkFailedError, match="training began"):
            pipeline.run(chosen, out)
        return " ".join(capfd.readouterr().err.split())

    monkeypatch.setattr(pipeline, "train", begin)
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(discs, data)
    before = open_dataset(data).fingerprint
    for name in ("dense", "pruned"):
        finish(out, name, before)
    assert TOLD not in run()
    image = open_dataset(data).train[0]
    for part in ("image", "mask"):
        getattr(image, part).unlink()
    assert f"{TOLD}dense, pruned" in run()
    interrupt(out, "int8", before, TRAINING_STATE)
    left = (out / RECIPE).read_text()
    with pytest.raises(UsageError, match=r"int8.* holds an interrupted training of an earlier run on other data"):
        pipeline.run(Recipe.load(None, [*TINY_SETTINGS, f"data.path={data}", "bench.rounds=5"]), out)
    assert (out / RECIPE).read_text() == left


def test_a_run_that_is_refused_for_another_leaves_its_recipe(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def chosen(*settings: str) -> Recipe:
        return Recipe.load(None, [*TINY_SETTINGS, f"data.path={discs}", *settings])

    def begin(*_: object) -> None:
        left = (out / RECIPE).read_text()
        with pytest.raises(BusyError, match=f"another run is writing {out}"):
            pipeline.run(chosen("bench.rounds=7"), out)
        assert (out / RECIPE).read_text() == left
        raise WorkFailedError("training began")

    monkeypatch.setattr(pipeline, "train", begin)
    for _ in range(2):  # what has ended is in nobody's way
        with pytest.raises(WorkFailedError, match="training began"):
            pipeline.run(chosen(), out)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_in_which_nothing_counts_is_named_before_anything_is_made(
    split: str, discs: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(discs, data)
    classes = json.loads((data / "classes.json").read_text())
    (data / "classes.json").write_text(json.dumps(classes | {"ignore_index": 9}))
    for mask in (data / split / "masks").iterdir():
        with Image.open(mask) as drawn:
            Image.new("L", drawn.size, 9).save(mask)
    with pytest.raises(DatasetError, match=f"{split}: every mask is void everywhere"):
        pipeline.run(Recipe.load(None, [*TINY_SETTINGS, f"data.path={data}"]), out)
    assert not out.exists()


def test_data_that_change_during_a_run_end_it_before_networks_of_different_data_are_compared(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddle(*_: object) -> SimpleNamespace:
        """Edit a mask, as a user might during the training."""
        mask = open_dataset(data).val[0].mask
        Image.fromarray(1 - np.asarray(Image.open(mask))).save(mask)
        return SimpleNamespace(path=tmp_path / "run" / "dense")

    monkeypatch.setattr(pipeline, "train", meddle)
    data = tmp_path / "data"
    shutil.copytree(discs, data)
    with pytest.raises(WorkFailedError, match=r"data was changed during the run"):
        pipeline.run(Recipe.load(None, [*TINY_SETTINGS, f"data.path={data}"]), tmp_path / "run")
