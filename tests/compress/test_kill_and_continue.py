"""A run killed with kill -9 and started again with the same command gives the same weights, plan and graphs."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.datasets import write_dataset

# State is saved after every step here, so that a kill in the middle of a short training has something to resume.
# The recipe has no rewrites: the clock chooses between equal forms, and two runs may choose differently.
PROGRAM = """
from compress.train import state
state.SECONDS_BETWEEN_SAVES, state.SHARE_OF_THE_TIME = 0.0, float("inf")
from compress.cli.main import main
main()
"""

RECIPE = """
[model]
base = 32
depth = 1
[train]
epochs = 6
batch_size = 4
precision = "float32"
[prune]
ratio = 0.5
[prune.finetune]
epochs = 4
batch_size = 4
[quantize]
calibration = "minmax"
calibration_images = 4
equalise = false
bias_correction = false
max_drop = 1.0
rewrites = false
[bench]
rounds = 3
threads = 1
"""

# A file that appears in the middle of a step, and the folder that must not be there yet.
MOMENTS = [
    (".dense.partial/training_state.pt", "dense"),
    (".dense-fp32.partial/model.onnx", "dense-fp32"),
    (".dense-int8.partial/latency.json", "dense-int8"),
    (".pruned.partial/.scratch/round-1/pruning_plan.json", "pruned"),
    (".pruned.partial/.scratch/round-1/training_state.pt", "pruned"),
    (".report.partial/.key", "report"),
]

RESULTS = (
    "dense/weights.safetensors",
    "pruned/weights.safetensors",
    "pruned/pruning_plan.json",
    "dense-fp32/model.onnx",
    "pruned-fp32/model.onnx",
    "dense-int8/model.onnx",
    "int8/model.onnx",
    "int8/calibration.json",
)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", counts={"train": 8, "val": 4, "test": 4}, size=(32, 32), channels=1, seed=0)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def command(workplace: Path, out: str) -> list[str]:
    settings = ["--set", f"data.path={workplace / 'data'}"]
    return [
        sys.executable,
        "-c",
        PROGRAM,
        "run",
        str(workplace / "recipe.toml"),
        "--out",
        str(workplace / out),
        *settings,
    ]


def hashes(out: Path) -> dict[str, str]:
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in RESULTS}


def kill_when(arguments: list[str], marker: Path) -> None:
    """Start, wait for `marker`, and end the process as a power cut would."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not marker.exists():
        assert process.poll() is None, f"ended before {marker} appeared"
        assert time.monotonic() < deadline, f"{marker} never appeared"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finish(arguments: list[str]) -> str:
    """Run to the end. A verdict of the report may fail on so small a set (status 1); anything else may not."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0 or "the run is complete, but" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow(first=True)
def test_a_run_killed_in_every_kind_of_step_ends_like_one_that_was_left_alone(workplace: Path) -> None:
    finish(command(workplace, "whole"))
    for marker, target in MOMENTS:
        kill_when(command(workplace, "killed"), workplace / "killed" / marker)
        assert not (workplace / "killed" / target).exists()
    finish(command(workplace, "killed"))
    assert hashes(workplace / "killed") == hashes(workplace / "whole")
    left_over = [path.name for path in (workplace / "killed").iterdir() if path.name.startswith(".")]
    assert left_over == []
    # Run once more: there is nothing left to do.
    steps = sum(path.is_dir() for path in (workplace / "killed").iterdir())
    assert finish(command(workplace, "killed")).count("is up to date") == steps


@pytest.mark.slow
def test_a_second_run_on_the_same_folder_is_refused(workplace: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, "train", "--data", str(workplace / "data"), "--out"]
    arguments += [
        str(workplace / "out"),
        "--set",
        "train.epochs=2000",
        "--set",
        "model.base=16",
        "--set",
        "model.depth=1",
    ]
    first = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (workplace / ".out.partial" / "precision.json").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert "another run is writing" in second.stderr
    assert "Traceback" not in second.stderr
