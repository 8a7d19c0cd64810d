"""Asks for the server's health while others load it: the answer must never wait behind their work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import count
from math import inf

from benchmarks.load.client import Connection, Target

_PATH = "/v2/health/ready"
_EVERY_SECONDS = 0.05
_TIMEOUT_SECONDS = 10.0


@dataclass
class Probes:
    """What the probes found so far."""

    milliseconds: list[float] = field(default_factory=list)
    """One for each probe answered 200, counted from when it was due: waiting out a stall must not hide it."""
    failed: int = 0
    until: float = inf
    """Probes due later than this, by the clock of the event loop, are not sent."""


@asynccontextmanager
async def probed(target: Target, path: str = _PATH) -> AsyncIterator[Probes]:
    """Probe 20 times a second on a connection of its own while the block lasts, then wait for what was due in it."""
    probes = Probes()
    asking = asyncio.create_task(_ask(target.get(path), target, probes))
    try:
        yield probes
    finally:
        probes.until = asyncio.get_running_loop().time()
        await asking


async def _ask(request: bytes, target: Target, probes: Probes) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with closing(Connection(target)) as connection:
        for number in count():
            due = begun + number * _EVERY_SECONDS
            await asyncio.sleep(max(0.0, due - loop.time()))
            if due > probes.until:
                return
            try:
                async with asyncio.timeout_at(due + _TIMEOUT_SECONDS):
                    status = await connection.exchange(request)
            except (OSError, EOFError):  # a timeout is an OSError
                status = 0
            if status == 200:
                probes.milliseconds.append(1e3 * (loop.time() - due))
            else:
                probes.failed += 1
