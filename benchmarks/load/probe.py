"""Health asked again and again while others load the server: it must never wait behind their work."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field

from benchmarks.load.client import Connection, Target

_PATH = "/v2/health/ready"
_EVERY_SECONDS = 0.05
_TIMEOUT_SECONDS = 10.0


@dataclass
class Probes:
    """What the probes met so far."""

    milliseconds: list[float] = field(default_factory=list)
    """One of each that was answered 200."""
    failed: int = 0


@asynccontextmanager
async def probed(target: Target, path: str = _PATH) -> AsyncIterator[Probes]:
    """Ask 20 times a second on a connection of its own while the block lasts."""
    probes = Probes()
    asking = asyncio.create_task(_ask(target.get(path), target, probes))
    try:
        yield probes
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking


async def _ask(request: bytes, target: Target, probes: Probes) -> None:
    with closing(Connection(target)) as connection:
        while True:
            begun = time.perf_counter()
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    status = await connection.exchange(request)
            except (OSError, EOFError):  # a timeout is an OSError, too
                status = 0
            if status == 200:
                probes.milliseconds.append(1e3 * (time.perf_counter() - begun))
            else:
                probes.failed += 1
            await asyncio.sleep(max(0.0, _EVERY_SECONDS - (time.perf_counter() - begun)))
