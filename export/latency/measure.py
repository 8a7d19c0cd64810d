"""Time layers, each beside the reference convolution.

Machines drift, by half within seconds (`export.timing`). So the ratio to a convolution in the same graph is kept, and
the order is shuffled, lest a drift look like a property of wide layers. Of several runs the fastest counts, because
what disturbs a kernel only ever makes it slower.
"""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from export.errors import UsageError
from export.files import make_folder
from export.latency.kinds import LayerKey, Pair
from export.latency.probes import REFERENCE, probe_of
from export.latency.store import cache_path, keep, opened
from export.latency.table import LatencyTable, Point
from export.machine import usable_cores
from export.manifest import Precision
from export.profiling import profiled

BATCH = 25
"""Layers between two writes of the table."""

RUNS = 11

Counted = Callable[[int, int], None]
"""Called with how many layers are done, and of how many."""


def silent(done: int, total: int) -> None:
    """Report no progress."""
    del done, total


def measure_table(
    keys: Iterable[LayerKey],
    *,
    path: Path,
    precision: Precision,
    threads: int | None = None,
    size: Pair,
    progress: Counted = silent,
) -> LatencyTable:
    """The table at `path` with every one of `keys`; those that it lacks are measured here and now.

    `size` is that of the image whose layers these are; `threads` is by default all cores that may be used. The table
    is written after every batch: after an interruption the same call continues, and another process may add layers of
    its own to the same file.
    Raises UsageError when `path` holds no table, or one of another machine, precision or number of threads.
    """
    threads = threads or usable_cores()
    table = opened(path, precision, threads)
    wanted = [key for key in dict.fromkeys(keys) if key.kind.takes_time(precision)]
    missing = [key for key in wanted if key not in table]
    random.Random(0).shuffle(missing)
    done = len(wanted) - len(missing)
    progress(done, len(wanted))
    for start in range(0, len(missing), BATCH):
        points = []
        for key in missing[start : start + BATCH]:
            points.append((key.kind, _timed(key, precision, threads)))
            done += 1
            progress(done, len(wanted))
        table = keep(path, table.merged(points))
    return table if size in table.sizes else keep(path, table.merged((), [size]))


def cached_table(
    keys: Iterable[LayerKey],
    *,
    precision: Precision,
    threads: int | None = None,
    size: Pair,
    progress: Counted = silent,
) -> LatencyTable:
    """`measure_table` in the user's cache: a file for each machine, version of the runtime, precision and threads.

    Raises UsageError where the cache cannot be written, and for a damaged file.
    """
    threads = threads or usable_cores()
    path = cache_path(precision, threads)
    try:
        make_folder(path.parent)
    except UsageError as error:
        raise UsageError(f"{error}, as XDG_CACHE_HOME: measured layers are kept there for the next time") from error
    return measure_table(keys, path=path, precision=precision, threads=threads, size=size, progress=progress)


def reference_now(precision: Precision, threads: int | None = None) -> float:
    """Milliseconds that the reference convolution takes on this machine now."""
    return _timed(REFERENCE, precision, threads or usable_cores()).reference_microseconds / 1e3


def _timed(key: LayerKey, precision: Precision, threads: int) -> Point:
    probe = probe_of(key, precision)
    runs = profiled(probe.model, probe.feeds, threads=threads, runs=RUNS)
    return Point(
        channels_in=key.channels_in,
        channels_out=key.channels_out,
        microseconds=min(probe.microseconds(run) for run in runs),
        reference_microseconds=min(probe.reference_microseconds(run) for run in runs),
    )
