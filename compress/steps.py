"""Steps whose folders are whole or absent, that survive a kill, and that are not run twice.

A step writes into `.NAME.partial/` beside its target and renames it when it is whole. What a killed run left there is
reused if it belongs to the same inputs and settings. Otherwise it is removed, and a log line says so; but a training
that can continue is kept, and the step is refused. A lock lets a second run on the same folder fail at once.
`step.json` says what the folder was made from.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.recipe import leaves, on_one_line
from export.errors import BusyError, UsageError
from export.files import make_folder, sha256_json, write_json
from export.machine import library_versions

log = logging.getLogger(__name__)

RECORD = "step.json"
TRAINING_STATE = "training_state.pt"
"""What a training continues from, wherever it lies in a step's folder."""


@dataclass(frozen=True)
class StepPlan:
    """What a step is going to be made from; two equal plans give the same folder."""

    name: str
    inputs: Mapping[str, str]
    """Hashes by role: data, parent ..."""
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        return sha256_json(self._as_tree())

    def signed(self) -> str:
        """The key, and below it what it is the hash of."""
        return f"{self.key}\n{json.dumps(self._as_tree())}\n"

    def _as_tree(self) -> dict[str, Any]:
        return {"name": self.name, "inputs": dict(self.inputs), "settings": dict(self.settings)}


@dataclass
class StepFolder:
    """The partial folder of a running step."""

    path: Path
    """Where to write; becomes the target when the step is done."""
    started: float

    def scratch(self, name: str) -> "StepFolder":
        """A folder for a part of the step, which a killed run finds again and the result does not contain."""
        path = self.path / _SCRATCH / name
        make_folder(path)
        return StepFolder(path, self.started)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def decided(self, name: str) -> Any | None:
        """A decision that an earlier, killed run of this step took and saved; None where there is none."""
        return json.loads((self.path / name).read_text()) if self.has(name) else None

    def record(self, plan: StepPlan, result: Mapping[str, Any]) -> None:
        """Write step.json; for a bundle before it is sealed, so that the manifest covers it.

        After an interruption, its `seconds` are only those of what was left to do.
        """
        write_json(
            self.path / RECORD,
            {
                "step": plan.name,
                "key": plan.key,
                "inputs": dict(plan.inputs),
                "settings": dict(plan.settings),
                "result": dict(result),
                "libraries": library_versions(),
                "seconds": round(time.monotonic() - self.started, 1),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )


def finished(out: Path, plan: StepPlan) -> dict[str, Any] | None:
    """The record of `out` when it was made from the same inputs with the same settings, else None."""
    partial = _partial(out)
    if _is_whole(partial):
        # A kill came between the last write and the rename; or another run is about to rename.
        with contextlib.suppress(BusyError), locked(partial, out):
            if _is_whole(partial):
                _replace(partial, out)
    if out.exists():
        shutil.rmtree(_old(out), ignore_errors=True)
    record = read_record(out)
    return record if record is not None and record.get("key") == plan.key and "result" in record else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """step.json of a folder, None where there is none that a step wrote."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    sound = all(isinstance(record.get(name, {}), dict) for name in ("inputs", "settings", "result"))
    return record if sound else None


def result_of(folder: Path) -> dict[str, Any]:
    """What the step that made `folder` found.

    Raises UsageError where no step has left a result.
    """
    record = read_record(folder)
    if record is None or "result" not in record:
        raise UsageError(f"{folder} holds no result of a step; run the step that makes it")
    result: dict[str, Any] = record["result"]
    return result


@contextlib.contextmanager
def running(out: Path, plan: StepPlan) -> Iterator[StepFolder]:
    """The partial folder of `out`, locked; renamed to `out` when the block ends without an exception.

    Raises BusyError when another run holds it, UsageError when `out` holds something else or cannot be written, or an
    interrupted training with other inputs or settings would be lost.
    """
    _require_free(out, plan)
    partial = _partial(out)
    make_folder(partial.parent)
    with locked(partial, out):
        continued = _prepare(partial, plan)
        record = read_record(out)
        if record is not None and record.get("key") != plan.key:
            log.info("%s was made otherwise (%s); it is replaced when this step is done", out, _changed(record, plan))
        try:
            yield StepFolder(partial, time.monotonic())
        except UsageError:
            # A user's mistake leaves nothing behind. But never remove what an earlier run had done, nor a training that
            # stopped because one of its files was taken away meanwhile.
            if not continued and not _holds_training(partial):
                shutil.rmtree(partial)
            raise
        # Without its key a partial folder is whole: from here on a kill loses nothing.
        (partial / _KEY).unlink()
        _replace(partial, out)


def interrupted_training(out: Path) -> Path | None:
    """The folder of a training for `out` that was interrupted and can continue, None where there is none."""
    partial = _partial(out)
    return partial if _holds_training(partial) else None


def interrupted_inputs(out: Path) -> Mapping[str, str]:
    """The `StepPlan.inputs` of an interrupted run for `out`; empty where there is none, or where it did not record
    them."""
    key = _partial(out) / _KEY
    inputs: Mapping[str, str] = _plan_of(key.read_text()).get("inputs", {}) if key.exists() else {}
    return inputs


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two trees, a line each."""
    before, after = dict(leaves(earlier)), dict(leaves(now))
    names = [name for name in {**after, **before} if before.get(name) != after.get(name)]
    return [f"{name} was {on_one_line(before.get(name))} and is {on_one_line(after.get(name))}" for name in names]


def in_short(lines: Sequence[str], at_most: int = 6) -> str:
    """`lines` on one line, the first `at_most` of them in full."""
    more = f", and {len(lines) - at_most} more" if len(lines) > at_most else ""
    return ", ".join(lines[:at_most]) + more


def require_apart(out: Path, source: Path) -> None:
    """Raises UsageError when a step would replace what it is made from, or the folder around that, with its result."""
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        what = "is" if out.resolve() == source.resolve() else "holds"
        raise UsageError(
            f"{out} {what} what the step starts from, and would be replaced by its result; give another --out"
        )


_KEY = ".key"
_SCRATCH = ".scratch"


def _require_free(out: Path, plan: StepPlan) -> None:
    record = read_record(out)
    if record is not None and record.get("step") != plan.name:
        raise UsageError(
            f"{out} holds the result of another step ({record.get('step')}); give another --out, or remove it"
        )
    if out.exists() and record is None and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not the result of a step; give another --out, or move it away")


def _partial(out: Path) -> Path:
    return _beside(out, "partial")


def _old(out: Path) -> Path:
    return _beside(out, "old")


def _beside(out: Path, suffix: str) -> Path:
    whole = out.resolve()
    if not whole.name or whole == Path.cwd():
        raise UsageError(f"{out} cannot be replaced by the result of a step; give --out a folder to make")
    return whole.with_name(f".{whole.name}.{suffix}")


def _is_whole(partial: Path) -> bool:
    return (partial / RECORD).exists() and not (partial / _KEY).exists()


def _prepare(partial: Path, plan: StepPlan) -> bool:
    """Whether the step continues what an earlier run left; what belongs to another plan is removed.

    Raises UsageError where that would lose a training.
    """
    key = partial / _KEY
    earlier = key.read_text() if key.exists() else ""
    if earlier.partition("\n")[0] == plan.key:
        log.info("continuing what an earlier run left in %s", partial)
        return True
    left = sorted(path.name for path in partial.iterdir() if path != key)
    if left:
        why = _changed(_plan_of(earlier), plan)
        if _holds_training(partial):
            raise UsageError(
                f"{partial} holds an interrupted training that was started differently: {why}. The command that it was "
                "started with continues it; to start over, remove that folder, or give another --out"
            )
        log.info("removing what an interrupted run left in %s (%s): %s", partial, ", ".join(left), why)
    # The key goes last: without it, what is left after a kill would pass for whole.
    for path in sorted(partial.iterdir(), key=lambda path: path == key):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    key.write_text(plan.signed())
    return False


def _holds_training(partial: Path) -> bool:
    return any(partial.rglob(TRAINING_STATE))


def _changed(earlier: Mapping[str, Any], plan: StepPlan) -> str:
    """How `plan` differs from an earlier one, on one line."""
    if "settings" not in earlier:
        return "by a version that did not record its settings"
    inputs = earlier.get("inputs", {})
    name = earlier.get("name", plan.name)
    lines = [] if name == plan.name else [f"the step was {name} and is {plan.name}"]
    lines += [
        f"the {role} has changed" for role in {**plan.inputs, **inputs} if inputs.get(role) != plan.inputs.get(role)
    ]
    return in_short([*lines, *differences(earlier["settings"], plan.settings)])


def _plan_of(signed: str) -> Mapping[str, Any]:
    """The plan in the text of `StepPlan.signed`; empty where an earlier version wrote only the key."""
    try:
        tree = json.loads(signed.partition("\n")[2])
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _replace(partial: Path, out: Path) -> None:
    """Rename into place; a folder cannot be swapped in one call, so the old one steps aside first."""
    out, old = out.resolve(), _old(out)
    shutil.rmtree(partial / _SCRATCH, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(place: Path, out: Path) -> Iterator[None]:
    """Lock the folder `place` for what becomes `out`: the kernel releases it when the process ends, however it ends.

    Raises BusyError.
    """
    busy = f"another run is writing {out}; wait for it, or give another --out"
    place.mkdir(exist_ok=True)
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy) from error
        if not place.exists() or not os.path.samestat(os.fstat(handle), place.stat()):
            raise BusyError(busy)  # the other run renamed the folder before it released the lock
        yield
    finally:
        os.close(handle)
