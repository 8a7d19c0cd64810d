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
from export.files import sha256_json, write_json
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

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def decided(self, name: str) -> Any | None:
        """A decision that an earlier, killed run of this step took and saved."""
        return json.loads((self.path / name).read_text()) if self.has(name) else None

    def record(self, plan: StepPlan, result: Mapping[str, Any]) -> None:
        """Write step.json; a bundle does this before it seals, so that the manifest covers it."""
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
    if (partial / RECORD).exists() and not (partial / _KEY).exists():
        _replace(partial, out)  # a kill came between the last write and the rename
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

    Raises BusyError when another run holds it, UsageError when `out` holds something that is no step.
    """
    if out.exists() and read_record(out) is None and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and was not made by this tool; give another --out, or move it away")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(out)
    with _locked(partial, out):
        _prepare(partial, plan)
        yield StepFolder(partial, time.monotonic())
        # Without its key a partial folder is whole: from here on a kill loses nothing.
        (partial / _KEY).unlink()
        _replace(partial, out)


_KEY = ".key"


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _prepare(partial: Path, plan: StepPlan) -> None:
    key = partial / _KEY
    if key.exists() and key.read_text() == plan.key:
        log.info("continuing what an earlier run left in %s", partial)
        return
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    key.write_text(plan.key)


def _replace(partial: Path, out: Path) -> None:
    """Rename into place; a folder cannot be swapped in one call, so the old one steps aside first."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    """Hold the partial folder itself: the kernel lets go when the process ends, however it ends."""
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another run is writing {out}; wait for it, or give another --out") from error
        yield
    finally:
        os.close(handle)
