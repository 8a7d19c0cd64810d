"""`compress bench amp`: each cell runs in its precision or says why not, and trainings are compared in pairs."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.datasets import write_dataset
from support.recipes import TINY_RECIPE
from typer.testing import CliRunner

from benchmarks.amp.accuracy import compare
from benchmarks.amp.bench import bench
from benchmarks.amp.grid import WARMUP, CellProcess, cells, measure
from benchmarks.report.amp.results import AmpReport, Cell, Workload
from benchmarks.report.words import TIMES
from compress.anymodel import evaluate
from compress.cli.main import app
from compress.data.folder import open_dataset
from compress.models.unet import UNet
from compress.recipe import Recipe
from compress.steps import read_record
from export.errors import ShapeError, UsageError
from export.files import write_json

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Cell(precision="float32", channels_last=False, compiled=False)
LOGITS = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


def workload(**fields: Any) -> Workload:
    given = {"base": 2, "height": 32, "width": 32, "batch": 2, "channels": 1, "classes": 3, "steps": 3}
    return Workload(**{**given, "device": "cpu", "cell_seconds": 300.0, **fields})


def bench_amp(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compress.cli.main", "bench", "amp", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_cell_is_measured_in_the_precision_that_it_says(tmp_path: Path) -> None:
    done = bench_amp(
        *("--base", 2, "--size", "32x48", "--batch", 3, "--channels", 1, "--classes", 5, "--steps", 3),
        *("--device", "cpu", "--no-compile", "--out", tmp_path / "out", "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = AmpReport.model_validate_json(done.stdout)
    assert report == AmpReport.model_validate_json((tmp_path / "out" / "report.json").read_text())
    cells = [(r.cell.precision, r.cell.channels_last, r.cell.compiled) for r in report.cells]
    assert cells == list(product(LOGITS, (False, True), (False,)))
    for result in report.cells:
        assert result.failure is None
        assert len(result.samples_ms) == 3
        assert result.step_ms == sorted(result.samples_ms)[1]
        assert result.peak_memory_mib is not None
        assert result.peak_memory_mib > 0
        assert result.compute_dtype == LOGITS[result.cell.precision]
        assert result.compute_layout == result.cell.layout
        assert result.logits_NKHW == (3, 5, 32, 48)
        assert result.params == sum(weight.numel() for weight in UNet(channels=1, classes=5, base=2).parameters())
    rounding = {result.cell.precision: result.rounding or 0.0 for result in report.cells}
    # 24, 11 and 8 bits of mantissa.
    assert 0 < rounding["float32"] < 1e-5 < rounding["float16"] < rounding["bfloat16"] < 2e-2
    assert report.workload is not None
    assert (report.workload.height, report.workload.width, report.workload.device) == (32, 48, "cpu")
    assert len(report.verdicts) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json",
        "report.md",
        "step.png",
        "memory.png",
    }


@pytest.mark.slow
def test_a_cell_that_takes_too_long_is_a_row_and_a_missed_promise_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = [PLAIN.model_copy(update={"channels_last": True, "precision": name}) for name in ("float32", "bfloat16")]
    monkeypatch.setattr("benchmarks.amp.bench.cells", lambda *_, **__: [PLAIN, *compared])
    words = ("bench", "amp", "--device", "cpu", "--cell-seconds", 0, "--out", tmp_path / "out")
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert "stopped after 0 untimed steps: the limit of 0 s is reached" in done.stdout
    assert f"promise not checked: 2.50{TIMES} faster" in done.stdout
    report = AmpReport.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert [result.cell for result in report.cells] == [PLAIN, *compared]
    assert all(result.step_ms is None and result.failure for result in report.cells)
    assert not (tmp_path / "out" / "step.png").exists()


def test_each_cell_is_compiled_too_unless_that_is_not_wanted() -> None:
    assert [cell.compiled for cell in cells("cpu")] == [False, True] * 6
    assert not any(cell.compiled for cell in cells("cpu", compiled=False))


@pytest.mark.slow
def test_what_a_cell_stumbles_over_is_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    compiled = PLAIN.model_copy(update={"compiled": True})
    (without_compiler, plain) = measure([compiled, PLAIN], workload(steps=1))
    assert without_compiler.failure is not None
    assert "compiler" in without_compiler.failure
    assert "\n" not in without_compiler.failure
    assert (without_compiler.samples_ms, without_compiler.step_ms, without_compiler.at_least_ms) == ((), None, None)
    assert plain.failure is None
    assert len(plain.samples_ms) == 1


@pytest.mark.slow
def test_memory_that_is_not_there_is_a_result() -> None:
    (result,) = measure([PLAIN], workload(batch=10**9))
    assert result.failure is not None
    assert "memory" in result.failure
    assert result.rounding is None


def at_first_advance(act: Callable[[int], None]) -> Any:
    """A progress bar that calls `act` on the process of the cell once the cell is warm."""

    class Bar:
        def advance(self, steps: int = 1) -> None:
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    act(child.pid)

    @contextmanager
    def progress(title: str, total: int) -> Iterator[Bar]:
        yield Bar()

    return progress


@pytest.mark.slow
def test_a_process_that_dies_is_a_result() -> None:
    kill = at_first_advance(lambda pid: os.kill(pid, signal.SIGKILL))
    (result,) = measure([PLAIN], workload(), progress=kill)
    assert result.failure == "its process died with exit status -9"
    assert len(result.untimed_ms) == WARMUP
    assert result.samples_ms == ()


@pytest.mark.slow
def test_a_step_that_hangs_is_stopped_and_bounds_the_figure() -> None:
    hang = at_first_advance(lambda pid: os.kill(pid, signal.SIGSTOP))
    (result,) = measure([PLAIN], workload(cell_seconds=8), progress=hang)
    assert result.failure is not None
    assert result.failure.startswith(f"stopped after {WARMUP} untimed steps: the limit of 8 s is reached; a step takes")
    assert result.at_least_ms is not None
    assert result.at_least_ms >= max(result.untimed_ms[1:])
    assert result.step_ms is None
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_second_step_that_never_ends_is_a_bound_by_itself() -> None:
    with closing(CellProcess(PLAIN, workload(cell_seconds=8))) as process:
        process.ask(1)
        process.take(untimed=1, timed=0)
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        process.ask(1)
        process.take(untimed=1, timed=0)
        result = process.result()
    assert result.failure is not None
    assert result.failure.startswith(
        "stopped after 1 untimed steps: the limit of 8 s is reached; a step takes at least"
    )
    assert result.at_least_ms is not None
    assert result.at_least_ms > 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing to measure"),
        ({"workload": workload(height=40)}, "multiples of 16, got 40x32"),
        ({"workload": workload(), "device": "meta"}, "'meta' cannot train"),
        ({"recipe": TINY_RECIPE, "seeds": 11}, "1 to 10 seeds, got 11"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ShapeError), match=message):
        bench(tmp_path / "out", command="c", **fields)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", counts={"train": 4, "val": 2, "test": 3})


def test_the_precision_that_is_compared_can_be_named(tmp_path: Path, discs: Path) -> None:
    report = bench(tmp_path / "out", recipe=tiny("bfloat16"), device="cpu", data=discs, seeds=1, command="c")
    assert (report.precision, report.reason) == ("bfloat16", "asked for")
    assert report.accuracy is not None
    assert report.accuracy.precision == "bfloat16"
    assert [(supply.precision, supply.seed) for supply in report.accuracy.supplies] == [("float32", 0), ("bfloat16", 0)]
    record = read_record(tmp_path / "out" / "accuracy" / "bfloat16-seed-0")
    assert record is not None
    rates = record["result"]["throughput"]
    supply = report.accuracy.supplies[1]
    assert supply.feed_images_s == rates["feed_images_per_second"] > 0
    assert supply.network_images_s == rates["network_images_per_second"] > 0


def tiny(precision: str) -> Recipe:
    settings = TINY_RECIPE.train.model_copy(update={"precision": precision, "epochs": 2})
    return TINY_RECIPE.model_copy(update={"train": settings})


def decide(out: Path, precision: str) -> None:
    """Leave the decision of an earlier, interrupted run."""
    (out / "accuracy").mkdir(parents=True)
    write_json(out / "accuracy" / "precision.json", {"precision": precision, "reason": "kept from before"})


def accuracy_of(out: Path, data: Path) -> AmpReport:
    words = ("bench", "amp", "--part", "accuracy", "--data", data, "--seeds", 2, "--epochs", 1, "--device", "cpu")
    done = CliRunner().invoke(app, [*map(str, words), "--set", "train.batch_size=4", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    return AmpReport.model_validate_json(done.stdout)


@pytest.mark.slow
def test_trainings_are_compared_in_pairs_and_kept(tmp_path: Path, discs: Path) -> None:
    out = tmp_path / "out"
    decide(out, "bfloat16")
    report = accuracy_of(out, discs)
    assert (report.precision, report.reason, report.cells) == ("bfloat16", "kept from before", ())
    assert report.accuracy is not None
    assert (report.accuracy.data.name, report.accuracy.data.split, report.accuracy.data.images) == ("discs", "test", 3)
    assert report.accuracy.recipe["model"]["base"] == 16
    scores = {seed.seed: (seed.float32, seed.reduced) for seed in report.accuracy.seeds}
    assert scores.keys() == {0, 1}
    for seed, (place, precision) in product((0, 1), enumerate(("float32", "bfloat16"))):
        folder = out / "accuracy" / f"{precision}-seed-{seed}"
        record = read_record(folder)
        assert record is not None
        settings = record["settings"]["train"]
        assert (settings["precision"], settings["seed"], settings["epochs"]) == (precision, seed, 1)
        assert scores[seed][place] == evaluate(folder, discs, split="test").miou
    # One step an epoch: nothing is left to time once the first has been left out.
    assert report.accuracy.supplies == ()
    (verdict,) = report.verdicts
    assert "at most 0.0030 mIoU lost" in verdict.text
    weights = {path: path.stat().st_mtime_ns for path in out.glob("accuracy/*/weights.safetensors")}
    assert len(weights) == 4
    assert accuracy_of(out, discs).accuracy == report.accuracy
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


@pytest.mark.parametrize(
    "words", [["--data", "d"], ["--epochs", "3"], ["--recipe", "demo"], ["--set", "train.epochs=3"]]
)
def test_the_grid_refuses_what_only_trainings_use(words: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", "amp", *words])
    assert isinstance(done.exception, UsageError)
    assert f"{words[0]} would do nothing" in str(done.exception)


def test_the_recipe_may_say_where_the_data_are(tmp_path: Path, discs: Path) -> None:
    recipe = tiny("float32")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": discs})})
    accuracy = compare(tmp_path, recipe, precision="bfloat16", seeds=[0])
    assert accuracy.data.fingerprint == open_dataset(discs).fingerprint


def test_where_float32_is_chosen_there_is_nothing_to_compare(tmp_path: Path, discs: Path) -> None:
    decide(tmp_path / "out", "float32")
    report = bench(tmp_path / "out", recipe=tiny("auto"), device="cpu", data=discs, command="c")
    assert report.accuracy is None
    assert report.verdicts == ()
    assert "chooses float32 here (kept from before)" in report.notes[0]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["workload"] is None
