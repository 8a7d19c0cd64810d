"""A call over gRPC, whose message is read when its method asks for it.

To gRPC every method here takes a stream of messages, of which only the first is read. On the wire that is the same as a
method of one message; but such a method would run only once its message is complete, and until then the server would
hold the message for anybody, however slowly it comes and whatever the key.
"""

import asyncio
import ipaddress
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message
from starlette.datastructures import Headers

from serve.limits import BodyReader
from serve.oip.unparsed import check_unparsed, malformed
from serve.problems import ProblemError
from serve.record import RequestRecord

Context = grpc.aio.ServicerContext[Any, Any]

_LEAVING_SECONDS = 0.25
# The prefix of a network, within which a host may take any address that it likes. Source: RFC 8981.
_IPV6_BITS = 64


def client_at(peer: str) -> str:
    """The client behind `peer`, as gRPC names one: its address without the port, of IPv6 the network around it."""
    host = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_BITS), strict=False))


class Call:
    """The call that a method answers, as the method sees it."""

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
        """Seconds until gRPC's own deadline; infinite when the client set none."""
        left: float | None = self._context.time_remaining()
        return math.inf if left is None else left

    @asynccontextmanager
    async def body(self) -> AsyncIterator[Any]:
        """The message with its tensors, counted against the memory for all bodies until the block is left.

        Raises ProblemError 408 (too slow), 413 (too many values), 429 (too many bodies at once), 400 (missing or
        malformed).
        """
        content = await self._content()
        with self._bodies.held(len(content)):
            check_unparsed(content)
            yield self._parsed(content)

    async def small(self) -> Any:
        """A message of a few settings.

        Raises ProblemError 413 for a larger one, and the others of `body`.
        """
        content = await self._content()
        self._bodies.check_small(len(content))
        return self._parsed(content)

    async def _content(self) -> bytes:
        # A key tells clients apart even behind a proxy, where all come from one address.
        client = f"key {self._record.key}" if self._record.key else client_at(self._context.peer())
        content = await self._bodies.received(self._read(), client)
        self._record.received_bytes = len(content)
        return content

    async def _read(self) -> bytes:
        content = await self._context.read()
        if isinstance(content, bytes):
            return content
        # The client may also have left, or sent more than is accepted; then this task is cancelled in a moment.
        await asyncio.sleep(_LEAVING_SECONDS)
        raise ProblemError(400, "empty", "the call ended without a message; send one")

    def _parsed(self, content: bytes) -> Message:
        try:
            return self._form.FromString(content)
        except DecodeError as error:
            raise malformed() from error
