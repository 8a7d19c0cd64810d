"""Layers are timed, each beside the reference convolution.

Machines drift, within seconds by half (`export.timing`). What is kept is therefore the ratio to a convolution that runs
in the same graph, and the order is shuffled, so that no drift is a property of wide layers. Of several runs the fastest
counts: what disturbs a kernel only ever makes it slower.
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
from export.runtime import profiled

BATCH = 25
"""Layers between two writes of the table."""

RUNS = 11

Counted = Callable[[int, int], None]
"""Is told how many layers are done, and of how many."""


def silent(done: int, total: int) -> None:
    """Nobody watches."""
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
    """The table at `path`, with every one of `keys`: those that it lacks are measured here and now.

    `size` is that of the image whose layers these are, `threads` by default all cores that may be used. Written after
    every batch: interrupted, the same call goes on; another process may write its own layers into the same file.
    Raises UsageError when `path` holds a table of another machine, precision or number of threads, or none.
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

    Raises UsageError where nothing can be kept, and for a damaged file.
    """
    threads = threads or usable_cores()
    path = cache_path(precision, threads)
    try:
        make_folder(path.parent)
    except UsageError as error:
        raise UsageError(f"{error}, as XDG_CACHE_HOME: measured layers are kept there for the next time") from error
    return measure_table(keys, path=path, precision=precision, threads=threads, size=size, progress=progress)


def reference_now(precision: Precision, threads: int | None = None) -> float:
    """Milliseconds of the reference convolution on this machine at this moment."""
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
