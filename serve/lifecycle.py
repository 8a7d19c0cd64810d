"""The phase of a server between its start and its end, and the requests that it has not answered yet."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Phase(StrEnum):
    """The phases of a server, in order; it never goes back."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """Reports that it is not ready, but still answers requests: load balancers notice late."""
    DRAINING = "draining"


class Lifecycle:
    """The phase, and the number of requests in flight.

    For the event loop's thread only: nothing here is thread-safe.
    """

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.has_started = False
        """The models have been verified and warmed up; stays true to the end."""
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_ready(self) -> bool:
        """Whether load balancers should send requests."""
        return self.phase is Phase.READY

    @property
    def takes_requests(self) -> bool:
        """Whether new requests are answered."""
        return self.phase in (Phase.READY, Phase.LEAVING)

    @property
    def is_ending(self) -> bool:
        """Whether the shutdown has begun."""
        return self.phase in (Phase.LEAVING, Phase.DRAINING)

    def start(self) -> None:
        """Take requests, now that the models are verified and warm; does nothing once the shutdown has begun."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY
            self.has_started = True

    def leave(self) -> None:
        """Report that no more requests should be sent, but answer those that come. Drains at once if not ready."""
        self.phase = Phase.LEAVING if self.phase is Phase.READY else Phase.DRAINING

    def drain(self) -> None:
        """Take no more requests; accepted ones are finished."""
        self.phase = Phase.DRAINING

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request until its answer has been sent."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()
