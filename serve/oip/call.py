"""A call over gRPC, whose message is read when its method asks for it.

To gRPC every method here takes a stream of messages, of which the first is read: the same on the wire as a method of
one message. But such a method would run only once its message is whole, and until then the server would hold it for
whoever sends it, however slowly, and with whatever key.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from starlette.datastructures import Headers

from serve.limits import BodyReader
from serve.oip.unparsed import check_unparsed, malformed
from serve.problems import ProblemError
from serve.record import RequestRecord

Context = grpc.aio.ServicerContext[Any, Any]

_LEAVING_SECONDS = 0.25


class Call:
    """What a method may ask of the call that it answers."""

    def __init__(
        self, context: Context, form: type[Message], bodies: BodyReader, record: RequestRecord, headers: Headers
    ) -> None:
        """`form` is the class of its message; `headers` is what gRPC calls metadata."""
        self.headers = headers
        self._context = context
        self._form = form
        self._bodies = bodies
        self._record = record

    @property
    def seconds_left(self) -> float:
        """Until gRPC's own deadline; infinite when the client named none."""
        left: float | None = self._context.time_remaining()
        return math.inf if left is None else left

    @asynccontextmanager
    async def body(self) -> AsyncIterator[Any]:
        """The message with its tensors, counted against the memory for all bodies until the block is left.

        Raises ProblemError 408 (too slow), 413 (too many values), 429 (too many bodies at once), 400 (none, or no
        message).
        """
        content = await self._content()
        with self._bodies.held(len(content)):
            check_unparsed(content)
            yield self._parsed(content)

    async def small(self) -> Any:
        """A message of a few settings.

        Raises ProblemError 413 for one that is more than that, and the others of `body`.
        """
        content = await self._content()
        self._bodies.check_small(len(content))
        return self._parsed(content)

    async def _content(self) -> bytes:
        content = await self._bodies.received(self._read())
        self._record.received_bytes = len(content)
        return content

    async def _read(self) -> bytes:
        content = await self._context.read()
        if isinstance(content, bytes):
            return content
        # Also when the client left, or sends more than is taken; then this task is cancelled in a moment.
        await asyncio.sleep(_LEAVING_SECONDS)
        raise ProblemError(400, "empty", "the call ended without a message; send one")

    def _parsed(self, content: bytes) -> Message:
        try:
            return self._form.FromString(content)
        except DecodeError as error:
            raise malformed() from error
