"""`compress bench peers` without its command line: one model behind several servers, in one run."""

import asyncio
import random
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks.ending import sigterm_unwinds
from benchmarks.load.arrivals import poisson
from benchmarks.load.bench import DEFAULT_SIZE
from benchmarks.load.drive import Outcome, closed_loop, open_loop
from benchmarks.load.images import Payload, payload
from benchmarks.load.summary import pooled, summarised
from benchmarks.peers.behaviour import BEHAVIOURS, TIMEOUT_SECONDS, Subject
from benchmarks.peers.servers import OURS, Running, interpreters, running
from benchmarks.progress import Bar, Progress, silent
from benchmarks.report.folder import report_folder
from benchmarks.report.load.results import LoadSummary
from benchmarks.report.peers.results import Cell, PeerResult, PeersReport
from benchmarks.report.peers.write import verdicts, write
from export.bundle import Bundle, load
from export.errors import UsageError, WorkFailedError
from export.machine import Machine, usable_cores

DEFAULT_SECONDS = 10.0
DEFAULT_TURNS = 3
OPEN_LOAD = 0.8
"""Share of the smallest capacity, so that no server is overloaded."""

_WARM_UP_SECONDS = 2.0
_ALONE_SECONDS = 2.0
_VERSION = "from importlib.metadata import version; import sys; print(version(sys.argv[1]))"


def bench(
    bundle_path: Path,
    *,
    peers: Mapping[str, Path],
    out: Path,
    data: Path | None = None,
    size: tuple[int, int] | None = None,
    seconds: float = DEFAULT_SECONDS,
    turns: int = DEFAULT_TURNS,
    command: str,
    progress: Progress = silent,
) -> PeersReport:
    """Serve a bundle's graph by our server and by each of `peers` (name to environment), and write a report into `out`.

    First the servers take turns at saturation, `seconds` a turn; then in an open loop at the same rate for all,
    `seconds` over all turns; their order changes every turn. Then come the hard cases, SIGTERM last. A peer that does
    not run is named in the report; the others are still measured.

    Raises BundleError, DatasetError, UsageError, and WorkFailedError when ours does not run.
    """
    pythons = interpreters(peers)
    bundle = load(bundle_path)
    height, width = size or bundle.manifest.own_size or DEFAULT_SIZE
    padded = bundle.manifest.geometry(height, width).padded
    if padded != (height, width):
        raise UsageError(
            f"the peers do not pad, and the model does not take {height}x{width}; give --size {padded[0]}x{padded[1]}"
        )
    sent = payload((height, width), bundle.manifest.channels, data)
    workers = usable_cores()
    with sigterm_unwinds(), report_folder(out), ExitStack() as stack:
        servers, failures = _started(pythons, bundle, workers, stack, progress)
        round_robin = _RoundRobin(servers, sent, 4 * workers, seconds)
        with progress("load", len(servers) * (2 * turns + 1)) as bar:
            round_robin.measure(turns, bar)
        failures += round_robin.drop_the_dead()
        with progress("hard cases", len(round_robin.servers) * len(BEHAVIOURS)) as bar:
            behaviours = {name: round_robin.hard_cases(name, bar) for name in round_robin.servers}
        report = PeersReport(
            title=f"Servers with {bundle.path.resolve().name}",
            command=command,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=Machine.here(),
            bundle=bundle.path.resolve().name,
            requests=sent.described(),
            workers=workers,
            connections=4 * workers,
            seconds=seconds,
            turns=turns,
            rate=round_robin.rate,
            servers=tuple(
                PeerResult(
                    name=name,
                    version=_version(pythons[name], name),
                    closed=tuple(round_robin.saturated[name]),
                    capacity=round_robin.capacity(name),
                    opened=pooled(round_robin.opened[name]),
                    opened_turns=tuple(map(summarised, round_robin.opened[name])),
                    behaviours=behaviours[name],
                )
                for name in round_robin.servers
            ),
            failures=tuple(failures),
        )
        report = report.model_copy(update={"verdicts": verdicts(report)})
        # Before the servers are stopped, which may take half a minute each: an impatient user loses nothing.
        write(report, out)
    return report


class _RoundRobin:
    """The servers under load, one at a time, in turns."""

    def __init__(self, servers: dict[str, Running], sent: Payload, connections: int, seconds: float) -> None:
        self.servers = servers
        self._requests = {
            name: [server.post(file, sent.media_type) for file in sent.files] for name, server in servers.items()
        }
        self._connections = connections
        self._seconds = seconds
        self._alone: dict[str, LoadSummary] = {}
        self.saturated: dict[str, list[LoadSummary]] = {name: [] for name in servers}
        self.opened: dict[str, list[list[Outcome]]] = {name: [] for name in servers}
        self.rate = 0.0

    def capacity(self, name: str) -> float:
        return median(run.throughput for run in self.saturated[name])

    def measure(self, turns: int, bar: Bar) -> None:
        """Warm up, then send one by one; then in turns at saturation, and at a rate that overloads none of them."""
        for name in self.servers:
            # One connection would reach only some of a server's processes, and the first turn would warm the others.
            self._closed(name, self._connections, _WARM_UP_SECONDS)
            self._alone[name] = self._closed(name, 1, _ALONE_SECONDS)
            bar.advance()
        for _, name in self._in_turns(turns):
            self.saturated[name].append(self._closed(name, self._connections, self._seconds))
            bar.advance()
        self.rate = OPEN_LOAD * min(filter(None, map(self.capacity, self.servers)), default=1.0)
        for turn, name in self._in_turns(turns):
            arrivals = poisson(self.rate, self._seconds / turns, seed=turn)
            loop = open_loop(self.servers[name].target, self._requests[name], arrivals, timeout=TIMEOUT_SECONDS)
            self.opened[name].append(asyncio.run(loop))
            bar.advance()

    def _in_turns(self, turns: int) -> Iterator[tuple[int, str]]:
        """Every server once a turn, each turn in another order: the first finds the machine in another state."""
        order = list(self.servers)
        shuffle = random.Random(0).shuffle
        for turn in range(turns):
            shuffle(order)
            yield from ((turn, name) for name in order)

    def drop_the_dead(self) -> list[str]:
        """Leave out servers that answered nothing; return a message for each."""
        dead = [name for name in self.servers if not self.capacity(name)]
        for name in dead:
            del self.servers[name]
        return [f"{name} answered none of the requests: {self.saturated[name][0].errors}" for name in dead]

    def hard_cases(self, name: str, bar: Bar) -> dict[str, Cell]:
        """All of BEHAVIOURS; the last one ends the server."""
        alone_ms = self._alone[name].ms(50.0) or 0.0
        subject = Subject(self.servers[name], self._requests[name][0], alone_ms, self.capacity(name))
        cells: dict[str, Cell] = {}
        for case, behaviour in BEHAVIOURS.items():
            cells[case] = asyncio.run(behaviour(subject))
            bar.advance()
        return cells

    def _closed(self, name: str, connections: int, seconds: float) -> LoadSummary:
        target = self.servers[name].target
        loop = closed_loop(
            target, self._requests[name], connections=connections, seconds=seconds, timeout=TIMEOUT_SECONDS
        )
        return summarised(asyncio.run(loop))


def _started(
    pythons: Mapping[str, str], bundle: Bundle, workers: int, stack: ExitStack, progress: Progress
) -> tuple[dict[str, Running], list[str]]:
    """The servers that started, which end with `stack`, and why the others did not."""
    servers, failures = {}, []
    with progress("starting", len(pythons)) as bar:
        for name, python in pythons.items():
            try:
                servers[name] = stack.enter_context(running(name, python, bundle, workers))
            except WorkFailedError as error:
                if name == OURS:
                    raise
                failures.append(str(error))
            bar.advance()
    return servers, failures


def _version(python: str, package: str) -> str:
    done = subprocess.run([python, "-c", _VERSION, package], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "of unknown version"
