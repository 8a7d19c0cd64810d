"""Steps that are whole or absent, that a kill cannot spoil, and that are not run twice.

A step writes into `.NAME.partial/` beside its target and renames it when it is whole. What a killed run left
there is used again when it belongs to the same inputs and settings, and thrown away otherwise. A lock
gives a second run on the same folder a plain refusal. `step.json` says what the folder was made from.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.errors import BusyError, UsageError
from export.files import make_folder, sha256_json, write_json
from export.machine import library_versions

log = logging.getLogger(__name__)

RECORD = "step.json"


@dataclass(frozen=True)
class StepPlan:
    """What a step is going to be made from; two equal plans give the same folder."""

    name: str
    inputs: Mapping[str, str]
    """Hashes by role: data, parent ..."""
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        return sha256_json({"name": self.name, "inputs": dict(self.inputs), "settings": dict(self.settings)})


@dataclass
class StepFolder:
    """The partial folder of a running step."""

    path: Path
    """Where to write; becomes the target when the step is done."""
    started: float

    def scratch(self, name: str) -> "StepFolder":
        """A part of the step with a folder of its own, which a killed run finds again and a result does not hold."""
        path = self.path / _SCRATCH / name
        make_folder(path)
        return StepFolder(path, self.started)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def decided(self, name: str) -> Any | None:
        """A decision that an earlier, killed run of this step took and saved."""
        return json.loads((self.path / name).read_text()) if self.has(name) else None

    def record(self, plan: StepPlan, result: Mapping[str, Any]) -> None:
        """Write step.json; a bundle does this before it seals, so that the manifest covers it.

        Its `seconds` are, after an interruption, those of what was left.
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
        with contextlib.suppress(BusyError), _locked(partial, out):
            if _is_whole(partial):
                _replace(partial, out)
    if out.exists():
        shutil.rmtree(_old(out), ignore_errors=True)
    record = read_record(out)
    return record if record is not None and record.get("key") == plan.key else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """step.json of a folder, None where there is none."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


@contextlib.contextmanager
def running(out: Path, plan: StepPlan) -> Iterator[StepFolder]:
    """The partial folder of `out`, locked; renamed to `out` when the block ends without an exception.

    Raises BusyError when another run holds it, UsageError when `out` holds something else or cannot be written.
    """
    _require_free(out, plan)
    partial = _partial(out)
    make_folder(partial.parent)
    with _locked(partial, out):
        continued = _prepare(partial, plan)
        try:
            yield StepFolder(partial, time.monotonic())
        except UsageError:
            # A mistake of the user's leaves nothing behind; but never throw away what an earlier run had done.
            if not continued:
                shutil.rmtree(partial)
            raise
        # Without its key a partial folder is whole: from here on a kill loses nothing.
        (partial / _KEY).unlink()
        _replace(partial, out)


def require_apart(out: Path, source: Path) -> None:
    """Raises UsageError when a step would put its result in the place of what it is made from."""
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} is what the step starts from, and would be replaced by its result; give another --out")


_KEY = ".key"
_SCRATCH = ".scratch"


def _require_free(out: Path, plan: StepPlan) -> None:
    record = read_record(out)
    if record is not None and record.get("step") != plan.name:
        raise UsageError(
            f"{out} holds the result of another step ({record.get('step')}); give another --out, or remove it"
        )
    if out.exists() and record is None and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and was not made by this tool; give another --out, or move it away")


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
    """Whether what an earlier run left is gone on with."""
    key = partial / _KEY
    if key.exists() and key.read_text() == plan.key:
        log.info("continuing what an earlier run left in %s", partial)
        return True
    # The key goes last: without it, what is left after a kill would pass for whole.
    for path in sorted(partial.iterdir(), key=lambda path: path == key):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    key.write_text(plan.key)
    return False


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
def _locked(partial: Path, out: Path) -> Iterator[None]:
    """Hold the partial folder itself: the kernel lets go when the process ends, however it ends."""
    busy = f"another run is writing {out}; wait for it, or give another --out"
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy) from error
        if not partial.exists() or not os.path.samestat(os.fstat(handle), partial.stat()):
            raise BusyError(busy)  # the other run renamed the folder before it let go
        yield
    finally:
        os.close(handle)
