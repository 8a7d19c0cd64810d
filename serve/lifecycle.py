"""Where a server stands between its start and its end, and what is still in its hands."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Phase(StrEnum):
    """A server only ever goes forward through these."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """Says that it is not ready, and still takes requests: who sends them hears of it late."""
    DRAINING = "draining"


class Lifecycle:
    """The phase, and the number of requests that have come in and are not answered yet.

    Lives in the event loop's thread; nothing here is safe from another.
    """

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.has_started = False
        """The models were verified and warm once; stays true to the end."""
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_ready(self) -> bool:
        """Whether load balancers should send requests."""
        return self.phase is Phase.READY

    @property
    def takes_requests(self) -> bool:
        """Whether requests that come are answered."""
        return self.phase in (Phase.READY, Phase.LEAVING)

    @property
    def is_draining(self) -> bool:
        """Whether what was accepted is finished and nothing more is taken."""
        return self.phase is Phase.DRAINING

    @property
    def is_ending(self) -> bool:
        """Whether a signal to end has come."""
        return self.phase in (Phase.LEAVING, Phase.DRAINING)

    def start(self) -> None:
        """The models are verified and warm: take requests, unless the end has already been asked for."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY
            self.has_started = True

    def leave(self) -> None:
        """Say that no more requests should be sent; those that come are answered all the same."""
        self.phase = Phase.LEAVING if self.phase is Phase.READY else Phase.DRAINING

    def drain(self) -> None:
        """Take no more requests; those that are in are finished."""
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
