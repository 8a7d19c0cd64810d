"""The load generator against a server whose answers and stalls are known."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from benchmarks.load.arrivals import poisson
from benchmarks.load.client import Target
from benchmarks.load.drive import Outcome, closed_loop, open_loop
from benchmarks.load.probe import Probes, probed
from benchmarks.load.summary import summarised
from export.errors import UsageError


class Stub:
    """Answers 200, every `bad`th time 503; hangs up on every `rude`th request; silent from `stall`[0] for `stall`[1] s.

    Closes each connection after `gives` answers.
    """

    def __init__(
        self, *, bad: int = 0, rude: int = 0, stall: tuple[float, float] | None = None, gives: float = math.inf
    ) -> None:
        self.seen = 0
        self.bodies: list[bytes] = []
        self._bad, self._rude, self._stall, self._gives = bad, rude, stall, gives

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Target]:
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield Target.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/segment")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        given = 0
        try:
            while given < self._gives:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].split()
                self.bodies.append(await reader.readexactly(int(length[0]) if length else 0))
                self.seen += 1
                if self._rude and self.seen % self._rude == 0:
                    return
                await self._wait()
                status = b"503 Busy" if self._bad and self.seen % self._bad == 0 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\nmask")
                given += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _wait(self) -> None:
        if self._stall is None:
            return
        since = asyncio.get_running_loop().time() - self._begun - self._stall[0]
        if 0 <= since < self._stall[1]:
            await asyncio.sleep(self._stall[1] - since)


def opened(stub: Stub, arrivals: tuple[float, ...], *, timeout: float = 10.0, connections: int = 512) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with stub.listening() as target:
            requests = [target.post(b"an image", "image/jpeg")]
            return await open_loop(target, requests, arrivals, timeout=timeout, max_connections=connections)

    return asyncio.run(run())


def test_poisson_arrivals_have_the_rate_the_spread_and_independent_gaps() -> None:
    times = np.array(poisson(200, 100, seed=1))
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] <= times[-1] < 100
    # Counts per second: mean and variance equal the rate. Gaps: deviation equals mean, neighbours are uncorrelated.
    counts = np.histogram(times, bins=100, range=(0, 100))[0]
    assert counts.mean() == pytest.approx(200, rel=0.03)
    assert counts.var() == pytest.approx(200, rel=0.5)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03
    assert poisson(200, 100, seed=1) == tuple(times)
    assert poisson(200, 100, seed=2) != tuple(times)


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (1, 0), (-1, 1)])
def test_arrivals_without_rate_or_time_are_refused(rate: float, seconds: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        poisson(rate, seconds, seed=0)


@pytest.mark.parametrize("connections", [512, 1])
def test_a_stall_shows_in_every_request_that_was_due_in_it(connections: int) -> None:
    """Also with one connection, on which a closed loop would have seen a single slow request."""
    arrivals = tuple(index / 100 for index in range(100))
    outcomes = opened(Stub(stall=(0.2, 0.5)), arrivals, connections=connections)
    assert [outcome.due for outcome in outcomes] == list(arrivals)
    hit = [outcome for outcome in outcomes if 0.25 <= outcome.due < 0.65]
    assert len(hit) == 40
    # Each waits for the rest of the stall; the slack is for the time between the starts of the two clocks.
    assert all(outcome.latency_ms >= 1e3 * (0.7 - outcome.due) - 40 for outcome in hit)
    summary = summarised(outcomes)
    assert (summary.sent, summary.ok, summary.errors) == (100, 100, {})
    p95 = next(point for point in summary.latency if point.percent == 95)
    assert p95.milliseconds >= 400


@pytest.mark.parametrize("ends", [0.4, 0.9], ids=["within the stall", "after it"])
def test_a_stall_shows_in_every_probe_that_was_due_in_it(ends: float) -> None:
    """Also in those that are still waiting when the run ends."""

    async def run() -> Probes:
        async with Stub(stall=(0.2, 0.5)).listening() as target, probed(target) as probes:
            await asyncio.sleep(ends)
        return probes

    probes = asyncio.run(run())
    assert probes.failed == 0
    assert len(probes.milliseconds) >= ends / 0.05
    # One is due every 50 ms, and each waits for the rest of the stall; the slack is for the clocks and the machine.
    waited = [ms for ms in probes.milliseconds if ms > 100]
    assert len(waited) >= (min(ends, 0.6) - 0.2) / 0.05 - 1
    assert max(waited) > 400


def test_each_request_is_answered_or_counted_as_an_error_once() -> None:
    stub = Stub(bad=10, rude=7)
    outcomes = opened(stub, poisson(400, 0.5, seed=3))
    summary = summarised(outcomes)
    rude = stub.seen // 7
    bad = sum(number % 10 == 0 and number % 7 != 0 for number in range(1, stub.seen + 1))
    assert stub.seen == summary.sent == len(outcomes)
    assert summary.errors == {"503": bad, "connection": rude}
    assert summary.ok == summary.sent - bad - rude
    assert set(stub.bodies) == {b"an image"}


def test_what_is_not_answered_in_time_is_a_timeout_also_before_it_was_sent() -> None:
    stub = Stub(stall=(0.0, 1.0))
    outcomes = opened(stub, (0.0, 0.0, 0.0), timeout=0.2, connections=1)
    assert [outcome.result for outcome in outcomes] == ["timeout"] * 3
    assert [outcome.sent is None for outcome in outcomes] == [False, True, True]
    assert stub.seen == 1
    assert summarised(outcomes).latency == ()


def test_a_connection_that_the_server_closed_while_it_was_idle_is_opened_again() -> None:
    outcomes = opened(Stub(gives=1), (0.0, 0.2, 0.4))
    assert [outcome.result for outcome in outcomes] == ["ok"] * 3


def test_nobody_there_is_a_connection_error() -> None:
    async def run() -> list[Outcome]:
        async with Stub().listening() as target:
            pass
        return await open_loop(target, [b""], (0.0, 0.01), timeout=5)

    assert [outcome.result for outcome in asyncio.run(run())] == ["connection"] * 2


def test_a_closed_loop_goes_on_after_errors_and_counts_all() -> None:
    stub = Stub(bad=10)

    async def run() -> list[Outcome]:
        async with stub.listening() as target:
            requests = [target.post(body, "image/png") for body in (b"a", b"bc")]
            return await closed_loop(target, requests, connections=3, seconds=0.3, timeout=5)

    summary = summarised(asyncio.run(run()))
    assert summary.sent == stub.seen > 20
    assert summary.errors == {"503": stub.seen // 10}
    assert abs(stub.bodies.count(b"a") - stub.bodies.count(b"bc")) <= 3


def test_percentiles_say_on_how_many_requests_they_rest() -> None:
    outcomes = [Outcome(0.0, 0.0, (index + 1) / 1e3, "ok") for index in range(1000)]
    latency = {point.percent: point for point in summarised(outcomes).latency}
    assert {percent: point.beyond for percent, point in latency.items()} == {50: 499, 95: 49, 99: 9, 99.9: 0}
    assert latency[50].milliseconds == pytest.approx(501)


@pytest.mark.parametrize("url", ["localhost:8000", "https://a/b", "http://", "http://a:port/"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        Target.of(url)
