"""Steps are whole or absent: kills at every moment, locks, other settings, and folders that hold something else."""

import contextlib
import fcntl
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.steps import TRAINING_STATE, StepPlan, finished, read_record, require_apart, running
from export.errors import BusyError, UsageError

PLAN = StepPlan("train", {"data": "ab" * 32}, {"train": {"epochs": 3}})
OTHER = StepPlan("train", {"data": "ab" * 32}, {"train": {"epochs": 4}})


def work(out: Path, plan: StepPlan = PLAN, text: str = "result") -> None:
    with running(out, plan) as step:
        (step.path / "result.txt").write_text(text)
        step.record(plan, {"miou": 0.5})


def rerun(out: Path) -> None:
    """What every step does."""
    if finished(out, PLAN) is None:
        work(out)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_step_is_whole_when_it_is_there(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with running(out, PLAN) as step:
        assert step.path != out
        assert not out.exists()
        assert not step.has("result.txt")
        (step.path / "result.txt").write_text("result")
        assert step.has("result.txt")
        step.record(PLAN, {"miou": 0.5})
    assert names(tmp_path / "deep") == ["out"]
    assert names(out) == ["result.txt", "step.json"]
    record = finished(out, PLAN)
    assert record == read_record(out)
    assert record is not None
    assert (record["step"], record["inputs"], record["settings"], record["result"]) == (
        "train",
        dict(PLAN.inputs),
        dict(PLAN.settings),
        {"miou": 0.5},
    )
    assert record["seconds"] >= 0
    assert record["libraries"]["numpy"]


def test_it_is_up_to_date_only_for_the_same_inputs_and_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert finished(out, PLAN) is None
    work(out)
    assert finished(out, StepPlan("train", {"data": "ab" * 32}, {"train": {"epochs": 3}})) is not None
    for plan in (OTHER, StepPlan("train", {"data": "cd" * 32}, PLAN.settings), StepPlan("prune", PLAN.inputs, {})):
        assert finished(out, plan) is None
    assert len({PLAN.key, OTHER.key}) == 2


def test_other_settings_replace_the_result_and_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "out"
    work(out)
    with running(out, OTHER):
        assert caplog.messages[0].startswith(f"{out} was made otherwise (train.epochs was 3 and is ")
        # Until the new result is whole, the old one stands.
        assert finished(out, PLAN) is not None
    work(out, OTHER, "new")
    assert (out / "result.txt").read_text() == "new"
    assert finished(out, PLAN) is None
    assert names(tmp_path) == ["out"]


def stop_in(out: Path, plan: StepPlan = PLAN) -> None:
    """Raise an exception in a step: as after a kill, what was written stays."""
    with contextlib.suppress(ZeroDivisionError), running(out, plan) as step:
        (step.path / "golden").mkdir(exist_ok=True)
        (step.path / "golden" / "half.txt").write_text("half")
        (step.path / "decision.json").write_text('{"ratio": 0.5}')
        raise ZeroDivisionError


def test_what_an_interrupted_run_left_is_used_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_in(out)
    assert finished(out, PLAN) is None
    assert not out.exists()
    with running(out, PLAN) as step:
        assert step.decided("decision.json") == {"ratio": 0.5}
        assert step.decided("another.json") is None
        assert step.has("golden/half.txt")


def test_what_a_run_with_other_settings_left_is_thrown_away_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    stop_in(out)
    caplog.set_level("INFO")
    with running(out, OTHER) as step:
        assert names(step.path) == [".key"]
    (line,) = caplog.messages
    assert line == (
        f"removing what an interrupted run left in {tmp_path / '.out.partial'} (decision.json, golden): "
        "train.epochs was 3 and is 4"
    )


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (OTHER, "train.epochs was 3 and is 4"),
        (
            StepPlan("train", PLAN.inputs, {"train": {"epochs": 3, "save_every": 10}}),
            "train.save_every was none and is 10",
        ),
        (StepPlan("train", {"data": "cd" * 32}, PLAN.settings), "the data has changed"),
        (StepPlan("train", {**PLAN.inputs, "init": "0"}, PLAN.settings), "the init has changed"),
        (StepPlan("prune", PLAN.inputs, PLAN.settings), "the step was train and is prune"),
        (StepPlan("train", PLAN.inputs, {str(n): n for n in range(9)}), r"5 was none and is 5, and 4 more\."),
    ],
)
@pytest.mark.parametrize("where", [".", ".scratch/round-1"])
def test_an_interrupted_training_is_not_thrown_away(tmp_path: Path, plan: StepPlan, says: str, where: str) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    stop_in(out)
    (partial / where).mkdir(parents=True, exist_ok=True)
    (partial / where / TRAINING_STATE).write_text("hours")
    with (
        pytest.raises(UsageError, match=f"{partial} holds an interrupted training .*{says}.*give another"),
        running(out, plan),
    ):
        pass
    with running(out, PLAN) as step:
        assert (step.path / where / TRAINING_STATE).read_text() == "hours"
        assert step.decided("decision.json") == {"ratio": 0.5}


def test_a_training_that_an_earlier_version_began_goes_on_and_is_not_thrown_away(tmp_path: Path) -> None:
    """That version's file holds the key alone, without the settings."""
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    stop_in(out)
    (partial / ".key").write_text(PLAN.key)
    (partial / TRAINING_STATE).write_text("hours")
    with pytest.raises(UsageError, match="did not record its settings"), running(out, OTHER):
        pass
    with running(out, PLAN) as step:
        assert step.has(TRAINING_STATE)


@pytest.mark.parametrize("name", ["golden", "decision.json", "step.json", ".key"])
def test_a_kill_while_throwing_away_does_not_make_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Otherwise a half-emptied folder with a record would pass for whole."""
    out = tmp_path / "out"
    stop_in(out)
    (tmp_path / ".out.partial" / "step.json").write_text(json.dumps({"step": "train", "key": PLAN.key}))

    def unless_killed(real: Callable[..., None]) -> Callable[..., None]:
        def remove(path: Path, **keywords: bool) -> None:
            if Path(path).name == name:
                raise KeyboardInterrupt
            real(path, **keywords)

        return remove

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unless_killed(Path.unlink))
        patched.setattr(shutil, "rmtree", unless_killed(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt), running(out, OTHER):
            pass
    assert finished(out, PLAN) is None
    assert not out.exists()
    work(out, OTHER)
    assert names(out) == ["result.txt", "step.json"]


KILL = """
import os, signal, sys
from pathlib import Path
from compress import steps
out, moment = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
real = os.rename
def rename(*arguments, **keywords):
    global calls
    calls += 1
    if calls == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **keywords)
os.rename = rename
rmtree = steps.shutil.rmtree
def remove(path, **keywords):
    if moment == 3 and calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rmtree(path, **keywords)
steps.shutil.rmtree = remove
plan = steps.StepPlan("train", {}, {"epochs": 2})
with steps.running(out, plan) as step:
    (step.path / "result.txt").write_text("new")
    step.record(plan, {})
"""


@pytest.mark.parametrize("moment", [1, 2, 3], ids=["before", "between", "after"])
def test_a_kill_around_the_rename_loses_nothing(tmp_path: Path, moment: int) -> None:
    """The last file is written, so the work is done: a kill before the old result moves aside, before the new one takes
    its place, or before the old one is removed, loses nothing."""
    out = tmp_path / "out"
    work(out, text="old")
    done = subprocess.run([sys.executable, "-c", KILL, str(out), str(moment)], check=False)
    assert done.returncode == -signal.SIGKILL
    record = finished(out, StepPlan("train", {}, {"epochs": 2}))
    assert record is not None
    assert (out / "result.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_second_run_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(out, PLAN):
        with pytest.raises(BusyError, match=f"another run is writing {out}"), running(out, PLAN):
            pass
        with pytest.raises(BusyError), running(out, OTHER):
            pass
    work(out)
    assert names(out) == ["result.txt", "step.json"]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom compress.steps import StepPlan, running\n"
        "with running(Path(sys.argv[1]), StepPlan('train', {}, {})):\n"
        "    print('locked', flush=True)\n    time.sleep(60)"
    )
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(BusyError), running(out, PLAN):
            pass
        process.kill()
    work(out)
    assert finished(out, PLAN) is not None


def test_a_run_that_opened_the_folder_just_before_it_was_renamed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    real = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        partial.rename(out)  # the first run is done, and lets go
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BusyError), running(out, PLAN):
        pass


def test_a_whole_folder_that_another_run_is_renaming_is_left_to_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial = tmp_path / ".out.partial"
    with running(out, PLAN) as step:
        step.record(PLAN, {})
        (partial / ".key").unlink()
        assert finished(out, PLAN) is None
        assert partial.exists()
        (partial / ".key").write_text(PLAN.key)
    assert finished(out, PLAN) is not None


def a_file(out: Path) -> None:
    out.write_text("mine")


def a_full_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("mine")


def a_folder_with_a_record_of_another_tool(out: Path) -> None:
    out.mkdir()
    (out / "step.json").write_text("[]")


def another_step(out: Path) -> None:
    work(out, StepPlan("prune", {}, {}))


@pytest.mark.parametrize("make", [a_file, a_full_folder, a_folder_with_a_record_of_another_tool, another_step])
def test_what_is_not_this_steps_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    make(out)
    before = {path: path.read_bytes() for path in (out, *out.rglob("*")) if path.is_file()}
    assert finished(out, PLAN) is None
    with pytest.raises(UsageError, match=f"{out} .*give another --out"), running(out, PLAN):
        pass
    assert {path: path.read_bytes() for path in (out, *out.rglob("*")) if path.is_file()} == before
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    work(tmp_path / "out")
    assert finished(tmp_path / "out", PLAN) is not None


@pytest.mark.parametrize("out", [".", "..", "/", "/dev/null/out", "file/out"])
def test_a_folder_that_cannot_be_made_is_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match=r"--out|cannot be written"):
        rerun(Path(out))
    assert names(tmp_path) == ["here"]


def test_a_relative_folder_is_that_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work(Path("out"))
    assert finished(tmp_path / "out", PLAN) is not None
    assert names(tmp_path) == ["out"]


def test_a_result_does_not_replace_what_it_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_apart(Path("out"), Path("in"))
    for source in (Path("out"), tmp_path / "out", Path("in/../out"), Path("out/last")):
        with pytest.raises(UsageError, match="would be replaced by its result"):
            require_apart(Path("out"), source)


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    for content in (b"", b"{", b"[1]", b"\xff", b'{"step": "train", "result": null}', b'{"settings": []}'):
        (tmp_path / "step.json").write_bytes(content)
        assert read_record(tmp_path) is None


def test_the_key_stays_until_the_work_is_done(tmp_path: Path) -> None:
    """A record alone does not make a folder whole: a bundle writes it before its manifest."""
    out = tmp_path / "out"
    with contextlib.suppress(ZeroDivisionError), running(out, PLAN) as step:
        step.record(PLAN, {})
        raise ZeroDivisionError
    assert finished(out, PLAN) is None
    assert not out.exists()
    assert names(tmp_path) == [".out.partial"]
