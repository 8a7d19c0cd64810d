"""Where tables are stored, and how two processes write one file."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from export.errors import UsageError
from export.files import make_folder, sha256_json, write_atomic
from export.latency.table import SCHEMA_VERSION, LatencyTable
from export.machine import Machine
from export.manifest import Precision


def cache_path(precision: Precision, threads: int) -> Path:
    """The table of this machine and these versions, under XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    table = _empty(precision, threads)
    digest = sha256_json({**_identity(table), "schema_version": SCHEMA_VERSION})
    return Path(home) / "segpress" / "latency" / f"{precision}-{threads}-threads-{digest[:12]}.json"


def opened(path: Path, precision: Precision, threads: int) -> LatencyTable:
    """The table at `path`, or an empty one, for more measurements on this machine.

    Raises UsageError for a file that is no table, and for one that this machine cannot continue.
    """
    fresh = _empty(precision, threads)
    if not path.exists():
        make_folder(path.parent)
        return fresh
    table = LatencyTable.load(path)
    here, there = _identity(fresh), _identity(table)
    differing = [f"{name} {there[name]}, here {here[name]}" for name in here if _differ(here[name], there[name])]
    if differing:
        raise UsageError(f"{path} holds measurements of something else ({'; '.join(differing)}); give another file")
    return table


def keep(path: Path, table: LatencyTable) -> LatencyTable:
    """Write `table` merged with what another process has written meanwhile; returns both together."""
    with _locked(path):
        if path.exists():
            there = LatencyTable.load(path)
            table = there.merged(table.points(), table.sizes)
        write_atomic(path, table.model_dump_json(indent=1) + "\n")
    return table


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file beside `path`, which is gone afterwards."""
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it before has removed it, and another may have made it anew.
            if lock.exists() and os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
                try:
                    yield
                finally:
                    lock.unlink()
                return


def _empty(precision: Precision, threads: int) -> LatencyTable:
    machine = Machine.here()
    return LatencyTable(
        machine=machine, onnxruntime=machine.libraries["onnxruntime"], precision=precision, threads=threads
    )


def _differ(one: str | int | None, other: str | int | None) -> bool:
    """None, from a table that does not say, differs from nothing."""
    return one != other and one is not None and other is not None


def _identity(table: LatencyTable) -> dict[str, str | int | None]:
    """What must be the same for two measurements to stand in one table."""
    machine = table.machine
    return {
        "processor": machine.cpu,
        "processor's model": machine.cpu_model,
        "instruction set": machine.instruction_set,
        "cores": machine.cores,
        "onnxruntime": table.onnxruntime,
        "precision": table.precision,
        "threads": table.threads,
    }
