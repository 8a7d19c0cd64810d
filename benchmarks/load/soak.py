"""`compress bench soak` without its command line: hours of load with some hostile traffic in it, and what grows."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import overload

import numpy as np

from benchmarks.ending import sigterm_unwinds
from benchmarks.load.arrivals import poisson
from benchmarks.load.client import Target
from benchmarks.load.drive import Outcome, closed_loop, open_loop
from benchmarks.load.hostile import KINDS, attack
from benchmarks.load.images import encoded, media_type, picture
from benchmarks.load.server import Server, serving
from benchmarks.load.summary import summarised
from benchmarks.load.view import View
from benchmarks.progress import Bar, Progress, silent
from benchmarks.report.folder import report_folder
from benchmarks.report.load.results import HostileTraffic, SoakReport, SoakSample
from benchmarks.report.load.soak import verdicts, write
from benchmarks.report.plots import shortcomings
from export.bundle import load
from export.errors import UsageError, WorkFailedError
from export.machine import Machine
from serve.settings import ServeSettings

DEFAULT_MINUTES = 20.0
DEFAULT_LOAD = 0.8
DEFAULT_HOSTILE = 0.01

_SMALLEST, _LARGEST = 64, 512
"""Height and width of the images, each drawn on its own."""
_CAPACITY_SECONDS = 5.0
_SAMPLES = 240
_SHORTEST_PAUSE_SECONDS = 0.2
_TIMEOUT_SECONDS = 30.0
_ESTABLISHED = "01"


def soak(
    bundle: Path,
    *,
    out: Path,
    settings: ServeSettings | None = None,
    minutes: float = DEFAULT_MINUTES,
    load_share: float = DEFAULT_LOAD,
    hostile: float = DEFAULT_HOSTILE,
    command: str,
    progress: Progress = silent,
) -> SoakReport:
    """Serve `bundle` in a process of its own for `minutes` at `load_share` of its capacity, and write the report.

    Every image has a random size of its own between 64 and 512 pixels a side, which is what makes memory grow where
    it can. `hostile` is the number of hostile clients (KINDS) for each good request. The server's memory, file
    descriptors and threads are sampled throughout.

    Raises BundleError, UsageError, and WorkFailedError for a server that does not start or ends.
    """
    if minutes <= 0 or load_share <= 0 or hostile < 0:
        raise UsageError(
            f"minutes and load must be above 0, hostile at least 0, got {minutes:g}, {load_share:g} and {hostile:g}"
        )
    settings = settings or ServeSettings()
    manifest = load(bundle).manifest
    seconds = 60 * minutes
    with (
        sigterm_unwinds(),
        report_folder(out),
        serving(bundle, settings) as server,
        progress("soak", _SAMPLES) as bar,
    ):
        target = Target.of(f"{server.url}/v1/models/{manifest.name}/segment")
        requests = _Varied(target, manifest.channels)
        capacity = asyncio.run(_capacity(target, requests, 2 * settings.concurrency))
        rate = load_share * capacity
        before = View.of(server.url)
        watch = _Watch(server, seconds / _SAMPLES, bar)
        outcomes, met = asyncio.run(_load(target, requests, rate, hostile * rate, seconds, watch))
        after = View.of(server.url)
    report = SoakReport(
        title=f"Soak of {bundle.resolve().name}",
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=Machine.here(),
        target=bundle.resolve().name,
        minutes=minutes,
        load=load_share,
        rate=rate,
        smallest=_SMALLEST,
        largest=_LARGEST,
        client=summarised(outcomes),
        answers=after.answers_since(before),
        hostile=tuple(
            HostileTraffic(kind=kind, outcomes=dict(met[kind]), accepted=tuple(sorted(KINDS[kind].accepted)))
            for kind in KINDS
            if met[kind]
        ),
        samples=tuple(watch.samples),
        notes=shortcomings(),
    )
    report = report.model_copy(update={"verdicts": verdicts(report)})
    write(report, out)
    return report


class _Varied(Sequence[bytes]):
    """Endless requests, each with an image of a different size; made when they are sent."""

    def __init__(self, target: Target, channels: int) -> None:
        self._target = target
        self._channels = channels

    def __len__(self) -> int:
        return 2**31

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        size = np.random.default_rng(index).integers(_SMALLEST, _LARGEST + 1, 2)
        image = picture((int(size[0]), int(size[1])), self._channels, seed=index)
        return self._target.post(encoded(image), media_type(self._channels))


class _Watch:
    """Samples the server's process while it is under load."""

    def __init__(self, server: Server, every_seconds: float, bar: Bar) -> None:
        self._proc = Path("/proc") / str(server.pid)
        self._server = server
        self._port = Target.of(server.url).port
        self._every = max(every_seconds, _SHORTEST_PAUSE_SECONDS)
        self._bar = bar
        self.samples: list[SoakSample] = []

    async def look(self) -> None:
        """Sample until cancelled. Raises WorkFailedError when the server is gone."""
        begun = time.perf_counter()
        while True:
            await asyncio.sleep(self._every)
            try:
                view = await asyncio.to_thread(View.of, self._server.url)
                status = (self._proc / "status").read_text(encoding="ascii")
                threads = int(status.partition("\nThreads:")[2].split(maxsplit=1)[0])
                descriptors = len(list((self._proc / "fd").iterdir()))
                connections = _open_to(self._port)
            except (OSError, ValueError, IndexError) as error:
                raise WorkFailedError(f"the server's process can no longer be sampled: {error}") from error
            self.samples.append(
                SoakSample(
                    seconds=time.perf_counter() - begun,
                    answered=sum(view.answers_since(View({})).values()),
                    resident_mib=view.resident_bytes / 2**20,
                    descriptors=descriptors,
                    connections=connections,
                    threads=threads,
                )
            )
            self._bar.advance()


def _open_to(port: int) -> int:
    """Connections to `port` whose client's end is open. Source: proc_pid_net(5), tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(remote.endswith(f":{port:04X}") and state == _ESTABLISHED for _, _, remote, state, *_ in rows)


async def _capacity(target: Target, requests: Sequence[bytes], connections: int) -> float:
    outcomes = await closed_loop(
        target, requests, connections=connections, seconds=_CAPACITY_SECONDS, timeout=_TIMEOUT_SECONDS
    )
    found = summarised(outcomes).throughput
    if not found:
        raise WorkFailedError("the server answered nothing before the soak began")
    return found


async def _load(
    target: Target, requests: Sequence[bytes], rate: float, hostile_rate: float, seconds: float, watch: _Watch
) -> tuple[list[Outcome], dict[str, Counter[str]]]:
    met: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}

    async def one(kind: str, due: float, good: bytes) -> None:
        await asyncio.sleep(due)
        met[kind][await attack(kind, target, good)] += 1

    looking = asyncio.create_task(watch.look())
    try:
        async with asyncio.TaskGroup() as group:
            if hostile_rate:
                for index, due in enumerate(poisson(hostile_rate, seconds, seed=1)):
                    group.create_task(one(list(KINDS)[index % len(KINDS)], due, requests[index]))
            good = group.create_task(
                open_loop(target, requests, poisson(rate, seconds, seed=0), timeout=_TIMEOUT_SECONDS)
            )
    finally:
        looking.cancel()
    if looking.done() and not looking.cancelled():
        looking.result()
    return good.result(), met
