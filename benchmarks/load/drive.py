"""Closed loop: each connection sends its next request once it has an answer. Open loop: requests are sent when they
are due, however slow the answers are."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count

from benchmarks.load.client import Connection, Target
from export.errors import UsageError

OK, TIMEOUT, CONNECTION = "ok", "timeout", "connection"


@dataclass(frozen=True)
class Outcome:
    """How one request ended. Times are seconds from the start of the run."""

    due: float
    """When it was meant to be sent; in a closed loop, when it was sent."""
    sent: float | None
    """None: it timed out while it waited for a connection."""
    ended: float
    result: str
    """ok, timeout, connection, or the status of an answer other than 200, such as 503."""

    @property
    def latency_ms(self) -> float:
        """Counted from when it was due: a generator that the server holds up must not hide that wait.

        Source: Gil Tene, "How NOT to measure latency", on coordinated omission.
        """
        return 1e3 * (self.ended - self.due)


async def closed_loop(
    target: Target, requests: Sequence[bytes], *, connections: int, seconds: float, timeout: float
) -> list[Outcome]:
    """Send over `connections` for `seconds`, then wait for what is in flight. Raises UsageError for none of either."""
    if connections < 1 or seconds <= 0:
        raise UsageError(f"a closed loop needs connections and time, got {connections} and {seconds:g} s")
    begun = time.perf_counter()
    numbers = count()
    outcomes: list[Outcome] = []

    async def one() -> None:
        with closing(Connection(target)) as connection:
            while (due := time.perf_counter() - begun) < seconds:
                request = requests[next(numbers) % len(requests)]
                result = await _result(connection, request, timeout)
                outcomes.append(Outcome(due, due, time.perf_counter() - begun, result))

    await asyncio.gather(*(one() for _ in range(connections)))
    return outcomes


async def open_loop(
    target: Target,
    requests: Sequence[bytes],
    arrivals: Sequence[float],
    *,
    timeout: float,
    max_connections: int = 512,
) -> list[Outcome]:
    """Send one request for each of `arrivals` (seconds from the start, in order); the outcomes are in that order.

    `timeout` counts from when a request is due. One that finds `max_connections` busy waits, and its latency grows.
    """
    begun = time.perf_counter()
    idle: list[Connection] = []
    places = asyncio.Semaphore(max_connections)

    async def one(index: int, due: float) -> Outcome:
        sent: float | None = None
        result = TIMEOUT
        try:
            async with asyncio.timeout(due + timeout - (time.perf_counter() - begun)), places:
                # The server is least likely to have closed the one used last.
                connection = idle.pop() if idle else Connection(target)
                sent = time.perf_counter() - begun
                try:
                    result = await _answer(connection, requests[index % len(requests)])
                finally:
                    idle.append(connection)
        except TimeoutError:
            pass
        return Outcome(due, sent, time.perf_counter() - begun, result)

    tasks = []
    try:
        for index, due in enumerate(arrivals):
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - begun)))
            tasks.append(asyncio.create_task(one(index, due)))
        return await asyncio.gather(*tasks)
    finally:
        for connection in idle:
            connection.close()


async def _result(connection: Connection, request: bytes, timeout: float) -> str:
    try:
        async with asyncio.timeout(timeout):
            return await _answer(connection, request)
    except TimeoutError:
        return TIMEOUT


async def _answer(connection: Connection, request: bytes) -> str:
    try:
        status = await connection.exchange(request)
    except TimeoutError:  # a kind of OSError
        raise
    except (OSError, EOFError):
        return CONNECTION
    return OK if status == 200 else str(status)
