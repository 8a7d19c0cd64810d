"""`compress bench load` without its command line: how much load a server takes, and how it answers meanwhile."""

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.ending import sigterm_unwinds
from benchmarks.load.arrivals import poisson
from benchmarks.load.client import Target
from benchmarks.load.drive import OK, Outcome, closed_loop, open_loop
from benchmarks.load.images import Payload, payload
from benchmarks.load.limit import Limit, limit
from benchmarks.load.probe import Probes, probed
from benchmarks.load.server import serving
from benchmarks.load.summary import summarised
from benchmarks.load.view import View
from benchmarks.progress import Bar, Progress, silent
from benchmarks.report.folder import report_folder
from benchmarks.report.load.results import Ceiling, Health, LoadReport, Pair, Run, ServerView
from benchmarks.report.load.verdicts import verdicts
from benchmarks.report.load.write import write
from benchmarks.report.plots import shortcomings
from export.bundle import load
from export.errors import UsageError, WorkFailedError
from export.machine import Machine
from serve.settings import ServeSettings

DEFAULT_SIZE = (360, 480)
DEFAULT_LOADS = (0.5, 0.8, 2.0)
DEFAULT_TURNS = 3
DEFAULT_SECONDS = 10.0
DEFAULT_TIMEOUT = 30.0

_WARM_UP_SECONDS = 1.0
_SLICE_SECONDS = 0.5
_REPORTED = ("concurrency", "threads_per_run", "max_batch", "batch_delay_seconds", "queue_limit", "max_wait_seconds")
_MIB = 2**20


def bench(
    bundle: Path,
    *,
    out: Path,
    data: Path | None = None,
    size: tuple[int, int] | None = None,
    settings: ServeSettings | None = None,
    connections: int | None = None,
    loads: Sequence[float] = DEFAULT_LOADS,
    seconds: float = DEFAULT_SECONDS,
    turns: int = DEFAULT_TURNS,
    timeout: float = DEFAULT_TIMEOUT,
    command: str,
    progress: Progress = silent,
) -> LoadReport:
    """Serve `bundle` in a process of its own, load it, and write the report into `out`.

    First the limit: in `turns`, the same work is done without HTTP and over HTTP, one image after the other (`seconds`
    for both together) and then at saturation (`seconds` each; a closed loop of `connections`, by default four for each
    request that the server works on at once). Then an open loop (Poisson arrivals) at each of `loads`, which are shares
    of the capacity just found; latency counts from when a request was due. Meanwhile health is probed. `size` (height,
    width) of the images defaults to what the bundle was made for, else 360x480.

    Raises BundleError, DatasetError, UsageError, and WorkFailedError for a server that does not start or ends.
    """
    settings = settings or ServeSettings()
    _require_sound(loads, seconds, turns)
    manifest = load(bundle).manifest
    sent = payload(size or manifest.own_size or DEFAULT_SIZE, manifest.channels, data)
    connections = connections or 4 * settings.concurrency
    total = 4 * turns + len(loads)
    with (
        sigterm_unwinds(),
        report_folder(out),
        serving(bundle, settings) as server,
        limit(bundle, settings, sent) as without,
        progress("load", total) as bar,
    ):
        generator = Generator(server.url, f"/v1/models/{manifest.name}/segment", sent, timeout)
        generator.run(generator.closed(connections, _WARM_UP_SECONDS))
        alone, model_ms = _pairs_alone(generator, without, seconds, turns, bar)
        saturated, closed = _pairs_saturated(generator, without, settings.concurrency, connections, seconds, turns, bar)
        capacity = median(run.client.throughput for run in closed)
        opened = [_opened(generator, load, capacity, seconds, bar) for load in loads]
    report = LoadReport(
        title=f"Load on {bundle.resolve().name}",
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=Machine.here(),
        target=bundle.resolve().name,
        precision=manifest.precision,
        settings={name: str(getattr(settings, name)) for name in _REPORTED},
        requests=sent.described(),
        seconds=seconds,
        capacity=capacity,
        ceiling=Ceiling(
            workers=settings.concurrency,
            throughput=saturated,
            latency_ms=alone,
            kept=median(pair.over_http / pair.direct for pair in saturated),
            added_ms=median(pair.over_http - pair.direct for pair in alone),
            model_ms=model_ms,
        ),
        runs=(*closed, *opened),
        notes=(*_noticed(closed), *shortcomings()),
    )
    report = report.model_copy(update={"verdicts": verdicts(report)})
    write(report, out)
    return report


class Generator:
    """Sends the load, and observes it from the client's and the server's side."""

    def __init__(self, base_url: str, path: str, sent: Payload, timeout: float) -> None:
        self._base_url = base_url
        self._target = Target.of(base_url + path)
        self._requests = [self._target.post(file, sent.media_type) for file in sent.files]
        self._timeout = timeout

    def closed(self, connections: int, seconds: float) -> Coroutine[Any, Any, list[Outcome]]:
        return closed_loop(
            self._target, self._requests, connections=connections, seconds=seconds, timeout=self._timeout
        )

    def open(self, arrivals: Sequence[float]) -> Coroutine[Any, Any, list[Outcome]]:
        return open_loop(self._target, self._requests, arrivals, timeout=self._timeout)

    def run(
        self,
        loop: Coroutine[Any, Any, list[Outcome]],
        *,
        load: float | None = None,
        rate: float | None = None,
        connections: int | None = None,
    ) -> Run:
        """One run, as the clients and the server saw it."""
        before, cpu, begun = View.of(self._base_url), time.process_time(), time.perf_counter()
        outcomes, probes = asyncio.run(self._beside_probes(loop))
        spent, wall = time.process_time() - cpu, time.perf_counter() - begun
        after = View.of(self._base_url)
        return Run(
            kind="open" if load is not None else "closed",
            load=load,
            rate=rate,
            connections=connections,
            client=summarised(outcomes),
            generator_cpu=spent / wall,
            server=ServerView(
                answers=after.answers_since(before),
                stages_ms=after.stages_ms_since(before),
                cpu=after.cpu_seconds_since(before) / wall,
                resident_mib=after.resident_bytes / _MIB,
            ),
            health=_health(probes),
        )

    async def _beside_probes(self, loop: Coroutine[Any, Any, list[Outcome]]) -> tuple[list[Outcome], Probes]:
        async with probed(self._target) as probes:
            return await loop, probes


def _pairs_alone(
    generator: Generator, without: Limit, seconds: float, turns: int, bar: Bar
) -> tuple[tuple[Pair, ...], float]:
    """Medians of each turn, and the median of the model's own milliseconds.

    Within a turn both sides alternate every half second: they differ by a few milliseconds, and the machine's speed
    drifts by more than that within seconds.
    """
    slices = max(1, round(seconds / 2 / _SLICE_SECONDS))
    pairs = []
    of_the_model: list[float] = []
    for _ in range(turns):
        direct: list[float] = []
        over_http: list[float] = []
        for _ in range(slices):
            turn = without.turn(1, seconds / 2 / slices)
            direct += turn.milliseconds
            of_the_model += turn.model_milliseconds
            outcomes = asyncio.run(generator.closed(1, seconds / 2 / slices))
            over_http += [outcome.latency_ms for outcome in outcomes if outcome.result == OK]
        bar.advance(2)
        if not over_http:
            raise WorkFailedError("the server answered none of the requests that were sent one by one")
        pairs.append(Pair(direct=median(direct), over_http=median(over_http)))
    return tuple(pairs), median(of_the_model)


def _pairs_saturated(
    generator: Generator, without: Limit, workers: int, connections: int, seconds: float, turns: int, bar: Bar
) -> tuple[tuple[Pair, ...], list[Run]]:
    pairs, runs = [], []
    for _ in range(turns):
        direct = without.turn(workers, seconds).throughput
        bar.advance()
        run = generator.run(generator.closed(connections, seconds), connections=connections)
        bar.advance()
        if not run.client.ok:
            raise WorkFailedError(f"the server answered none of the requests at saturation: {run.client.errors}")
        runs.append(run)
        pairs.append(Pair(direct=direct, over_http=run.client.throughput))
    return tuple(pairs), runs


def _opened(generator: Generator, load: float, capacity: float, seconds: float, bar: Bar) -> Run:
    rate = load * capacity
    arrivals = poisson(rate, seconds, seed=round(1e3 * load))
    run = generator.run(generator.open(arrivals), load=load, rate=rate)
    bar.advance()
    return run


def _health(probes: Probes) -> Health:
    times = probes.milliseconds
    return Health(
        asked=len(times) + probes.failed,
        failed=probes.failed,
        p50_ms=float(np.percentile(times, 50)) if times else None,
        p99_ms=float(np.percentile(times, 99, method="higher")) if times else None,
        max_ms=max(times, default=None),
    )


def _noticed(closed: Sequence[Run]) -> Iterator[str]:
    shares = [run.generator_cpu for run in closed]
    yield f"At saturation the load generator itself kept {median(shares):.2f} of a core busy, on the same machine."


def _require_sound(loads: Sequence[float], seconds: float, turns: int) -> None:
    """Raises UsageError."""
    if turns < 1 or seconds <= 0 or any(load <= 0 for load in loads):
        raise UsageError(
            "turns, seconds and loads must be above 0, got "
            f"{turns}, {seconds:g} and {', '.join(map('{:g}'.format, loads))}"
        )
