"""A call over gRPC, whose message is read when its method asks for it.

To gRPC every method here takes a stream of messages, of which the first is read: the same on the wire as a method of
one message. But such a method would run only once its message is whole, and until then the server would hold it for
whoever sends it, however slowly, and with whatever key.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from serve.limits import BodyReader
from serve.problems import ProblemError
from serve.record import RequestRecord

Context = grpc.aio.ServicerContext[Any, Any]

_LEAVING_SECONDS = 0.25


class Call:
    """What a method may ask of the call that it answers."""

    def __init__(self, context: Context, bodies: BodyReader, record: RequestRecord) -> None:
        self._context = context
        self._bodies = bodies
        self._record = record

    @property
    def seconds_left(self) -> float | None:
        """Until the client's deadline; None when it named none."""
        return self._context.time_remaining()

    @asynccontextmanager
    async def body(self) -> AsyncIterator[Any]:
        """The message, counted against the memory for all bodies until the block is left.

        Raises ProblemError 408 (too slow), 429 (too many bodies at once), 400 (none).
        """
        request = await self._message()
        with self._bodies.held(self._record.received_bytes):
            yield request

    async def small(self) -> Any:
        """A message of a few settings.

        Raises ProblemError 413 for one that is more than that, and the others of `body`.
        """
        request = await self._message()
        self._bodies.check_small(self._record.received_bytes)
        return request

    async def _message(self) -> Any:
        request = await self._bodies.received(self._read())
        self._record.received_bytes = request.ByteSize()
        return request

    async def _read(self) -> Any:
        request = await self._context.read()
        if request is grpc.aio.EOF:
            # Also when the client left, or sends more than is taken; then this task is cancelled in a moment.
            await asyncio.sleep(_LEAVING_SECONDS)
            raise ProblemError(400, "empty", "the call ended without a message; send one")
        return request
