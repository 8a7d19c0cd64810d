"""What lies between uvicorn's protocol and the socket."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Any

import httptools

_ACKED_AT = 120


class Gathered:
    """A transport that gathers all that is written in one turn of the event loop, and writes it at once.

    Headers and body of an answer come separately: two system calls, and after each a worker may hold the interpreter.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, closes: Callable[[], None]
    ) -> None:
        """`closes` is called in `close`; the connection itself closes when the client has taken everything."""
        self._transport = transport
        self._loop = loop
        self._closes = closes
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()
        self._closes()

    def abort(self) -> None:
        self._parts.clear()
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts:
            # Not writelines: in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 it never pauses the protocol, and a client
            # that reads nothing would not be cut off. Source: CVE-2024-12254.
            self._transport.write(b"".join(parts))


class ParserWithoutUpgrade:
    """Uvicorn's parser, which treats a request to upgrade to another protocol (h2c, WebSocket) like any other.

    httptools takes all that follows for the other protocol, the request's own body included. A server may ignore the
    upgrade: RFC 9110, 7.8.
    """

    def __init__(self, parser: httptools.HttpRequestParser, head_without: Callable[[], bytes]) -> None:
        self._parser = parser
        self._head_without = head_without

    @property
    def meets_upgrade(self) -> bool:
        return bool(self._parser.should_upgrade()) and self._parser.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without() + data[upgrade.args[0] :]
            else:
                return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


def taken_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the client's side has acknowledged, where the kernel reports them; 0 elsewhere.

    Our own buffer shows only when the kernel takes more, which with a slow client may be after a minute, since the
    kernel holds megabytes. Source: tcpi_bytes_acked of struct tcp_info in linux/tcp.h.
    """
    with contextlib.suppress(AttributeError, OSError):
        told = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + 8)
        if len(told) == _ACKED_AT + 8:
            return int.from_bytes(told[_ACKED_AT:], sys.byteorder)
    return 0
