"""How each server behaves in hard cases: the cells of the behaviour table."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.load.drive import CONNECTION, OK, TIMEOUT, closed_loop, open_loop
from benchmarks.load.hostile import KINDS, attack
from benchmarks.load.probe import probed
from benchmarks.peers.servers import Running
from benchmarks.report.load.results import is_accepted
from benchmarks.report.peers.results import Cell

TIMEOUT_SECONDS = 30.0

_LEAVERS = 40
_NEIGHBOURS = 12
_BURST = 300
_BURST_SECONDS = 0.5
_HEALTH_SECONDS = 5.0
_HEALTH_MS = 50.0
_DRAIN_CONNECTIONS = 8
_REFUSALS = {"429", "503"}


@dataclass(frozen=True)
class Subject:
    """A server, and a good request for it."""

    server: Running
    good: bytes
    alone_ms: float
    """What a good request takes alone."""
    capacity: float
    """Requests a second at saturation."""


Behaviour = Callable[[Subject], Coroutine[Any, Any, Cell]]


async def garbage(subject: Subject) -> Cell:
    return await _attacked(subject, "garbage")


async def bomb(subject: Subject) -> Cell:
    return await _attacked(subject, "decompression bomb")


async def large(subject: Subject) -> Cell:
    return await _attacked(subject, "40 MB body")


async def unannounced(subject: Subject) -> Cell:
    return await _attacked(subject, "40 MB body of unannounced length")


async def leavers(subject: Subject) -> Cell:
    """How long the next client waits behind those that have left: their work must be dropped."""
    target = subject.server.target
    await asyncio.gather(*(attack("leaves at once", target, subject.good) for _ in range(_LEAVERS)))
    begun = time.perf_counter()
    result = await _once(subject)
    waited_ms = 1e3 * (time.perf_counter() - begun)
    # Time for what the server was already working on, and a little more, since a machine is never quiet.
    fair_ms = 4 * subject.alone_ms + 100
    return Cell(good=result == OK and waited_ms < fair_ms, text=f"{result}; waits {waited_ms:.0f} ms")


async def neighbours(subject: Subject) -> Cell:
    """Every second client leaves; the others, which may share a run of the model with it, must not suffer."""
    target = subject.server.target
    staying = (_once(subject) for _ in range(_NEIGHBOURS))
    leaving = (attack("leaves at once", target, subject.good) for _ in range(_NEIGHBOURS))
    pairs = await asyncio.gather(*(asyncio.gather(*pair) for pair in zip(staying, leaving, strict=True)))
    results = Counter(result for result, _ in pairs)
    return Cell(good=set(results) == {OK}, text=_counts(results))


async def burst(subject: Subject) -> Cell:
    """Far more than it can do at once: all must be answered or refused in time, and none with a 500."""
    arrivals = np.linspace(0, _BURST_SECONDS, _BURST).tolist()
    outcomes = await open_loop(
        subject.server.target, [subject.good], arrivals, timeout=TIMEOUT_SECONDS, max_connections=_BURST
    )
    results = Counter(outcome.result for outcome in outcomes)
    answered = sorted(outcome.latency_ms for outcome in outcomes if outcome.result == OK)
    slowest = f", slowest {answered[-1] / 1e3:.1f} s" if answered else ""
    return Cell(good=set(results) <= {OK, *_REFUSALS} and bool(answered), text=_counts(results) + slowest)


async def health(subject: Subject) -> Cell:
    """Health answers quickly even at twice the server's capacity."""
    target = subject.server.target
    rate = 2 * subject.capacity
    arrivals = np.arange(0, _HEALTH_SECONDS, 1 / rate).tolist()
    async with probed(target, subject.server.health) as probes:
        await open_loop(target, [subject.good], arrivals, timeout=TIMEOUT_SECONDS)
    times, failed = probes.milliseconds, probes.failed
    if not times:
        return Cell(good=False, text=f"none of {failed} answered")
    p99 = float(np.percentile(times, 99, method="higher"))
    text = f"p99 {p99:.0f} ms" + (f", {failed} of {failed + len(times)} failed" if failed else "")
    return Cell(good=not failed and p99 < _HEALTH_MS, text=text)


async def ending(subject: Subject) -> Cell:
    """SIGTERM under load: whatever was sent before it must be answered. Comes last, as it ends the server."""
    told: list[float] = []

    async def tell() -> int | None:
        await asyncio.sleep(1)
        told.append(time.perf_counter() - begun)
        return await asyncio.to_thread(subject.server.terminate)

    begun = time.perf_counter()
    loop = closed_loop(
        subject.server.target, [subject.good], connections=_DRAIN_CONNECTIONS, seconds=2.5, timeout=TIMEOUT_SECONDS
    )
    outcomes, status = await asyncio.gather(loop, tell())
    before = Counter(outcome.result for outcome in outcomes if outcome.due < told[0])
    lost = before[CONNECTION] + before[TIMEOUT]
    end = "killed" if status is None else f"exit status {status}"
    return Cell(good=not lost and status == 0, text=f"{lost} lost; {end}")


BEHAVIOURS: Mapping[str, Behaviour] = {
    "garbage": garbage,
    "decompression bomb": bomb,
    "40 MB body": large,
    "40 MB body of unannounced length": unannounced,
    f"{_LEAVERS} clients leave": leavers,
    f"{_NEIGHBOURS} clients leave among {_NEIGHBOURS} others": neighbours,
    f"burst of {_BURST} requests": burst,
    "health at twice its capacity": health,
    "SIGTERM under load": ending,
}


async def _attacked(subject: Subject, kind: str) -> Cell:
    """The answer, and whether the server still serves."""
    outcome = await attack(kind, subject.server.target, subject.good)
    after = await _once(subject)
    text = outcome if after == OK else f"{outcome}, then a good request: {after}"
    return Cell(good=is_accepted(outcome, KINDS[kind].accepted) and after == OK, text=text)


async def _once(subject: Subject) -> str:
    outcomes = await open_loop(subject.server.target, [subject.good], [0.0], timeout=TIMEOUT_SECONDS)
    return outcomes[0].result


def _counts(results: Counter[str]) -> str:
    return ", ".join(f"{count} x {result}" for result, count in sorted(results.items()))
