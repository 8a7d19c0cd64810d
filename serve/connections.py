"""Limits of connections before and around their requests: how long they may take, and how many there may be.

Uvicorn bounds only the time between requests. It waits for ever for headers that come byte by byte, for the rest of a
body that no route reads, and for a client that does not read its answer; and it takes headers of any length. Its own
answers to bad HTTP become problems here, too.
"""

import asyncio
import random
import socket
import struct
from enum import Enum, auto
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serve.crowding import CROWDED, FULL
from serve.headers import secure
from serve.metrics import UNKNOWN_MODEL, Metrics
from serve.problems import ProblemError, problem_response
from serve.record import REQUEST_ID
from serve.settings import ServeSettings
from serve.transport import Gathered, ParserWithoutUpgrade, taken_bytes

_MAX_HEADER_BYTES = 64 * 1024
_BAD_HTTP = ProblemError(
    400, "bad_http", "this is not an HTTP/1.1 request with one Host, or its headers are too long; correct it"
)

# A second. A client that takes fewer occupies a connection and the memory of its answer at almost no cost.
_LEAST_BYTES_TAKEN = 1024


def guarded(settings: ServeSettings, metrics: Metrics) -> type["GuardedConnection"]:
    """Uvicorn's protocol with the limits of `settings`; `metrics` count what it refuses."""
    return type("Connection", (GuardedConnection,), {"settings": settings, "metrics": metrics, "awaited": set()})


class _Sending(Enum):
    """What the client is in the middle of sending."""

    NOTHING = auto()
    HEADERS = auto()
    """Some of a request's headers have arrived."""
    BODY = auto()


class GuardedConnection(HttpToolsProtocol):
    """One connection, closed when its client is too slow."""

    settings: ServeSettings
    metrics: Metrics
    awaited: set["GuardedConnection"]
    """The server's connections whose clients have not taken all of their answers."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.parser: ParserWithoutUpgrade = ParserWithoutUpgrade(self.parser, self._head_without_upgrade)  # type: ignore[arg-type,assignment]
        self._sending = _Sending.NOTHING
        self._header_bytes = 0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._taken = 0
        """Bytes that the client had taken when the `_writing` timer was started."""
        self._earlier: RequestResponseCycle | None = None
        """The request that was accepted before the newest, which is `cycle`."""
        self._last_words: bytes | None = None
        """The refusal of bytes that are not a request, once such have come. Nothing more is accepted then, and the
        refusal goes out when all requests before it have their answers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Gathered(transport, self.loop, self._take_the_rest))  # type: ignore[arg-type]
        crowd = len(self.connections)
        if crowd > 2 * self.settings.max_connections:
            transport.abort()
            return
        if crowd > self.settings.max_connections:
            self.app_state = {**self.app_state, CROWDED: True}
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reading = _disarmed(self._reading)
        self._await_no_more()

    def eof_received(self) -> None:
        super().eof_received()
        self._take_the_rest()  # the transport closes by itself now

    def data_received(self, data: bytes) -> None:
        if self._last_words is not None:
            return  # but read: unread bytes would reset the connection before the answers arrive, and hide its end
        # The callbacks reset this with each request and each piece of a body. What remains are headers, and what may
        # surround chunks: extensions and trailers.
        self._header_bytes += len(data)
        super().data_received(data)
        if self._sending is not _Sending.NOTHING and self._header_bytes > _MAX_HEADER_BYTES:
            self._refuse(_BAD_HTTP)
        self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._sending = _Sending.HEADERS

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._sending is _Sending.HEADERS:  # else a trailer: the application has its headers already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.meets_upgrade:
            return
        self._header_bytes = 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        # RFC 9112, 3.2; HTTP/1.0 may leave Host out.
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0"):
            raise ValueError("Host")  # the parser turns this into its own error, and uvicorn that into the 400 below
        if not self._has_memory():
            self.scope["state"][FULL] = True
        self._earlier = self.cycle
        super().on_headers_complete()
        self._sending = _Sending.BODY  # only now: an error before this has no request of the application to answer

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.meets_upgrade:
            return
        self._sending = _Sending.NOTHING
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._last_words is not None and self.cycle.response_complete and not self.transport.is_closing():
            self._leave(self._last_words)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._await_no_more()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  it says nothing that helps
        self._refuse(_BAD_HTTP)

    def _head_without_upgrade(self) -> bytes:
        """The head of the request that is being read, as it came but for its Upgrade header."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _watch(self) -> None:
        """Start the timer when the client has yet to send something that no route waits for; stop it once sent."""
        in_work = self.cycle is not None and not self.cycle.response_complete
        rests = self._sending is _Sending.NOTHING and self.timeout_keep_alive_task is not None
        if in_work or rests:
            self._reading = _disarmed(self._reading)
        elif self._reading is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(self.settings.header_seconds, self._dawdled)

    def _dawdled(self) -> None:
        if self._sending is _Sending.HEADERS:
            detail = f"the headers were not complete after {self.settings.header_seconds:g} s; send them faster"
            self._refuse(ProblemError(408, "slow_headers", detail))
        else:  # no request has begun, or the last one was answered long ago
            self.transport.close()

    def _take_the_rest(self) -> None:
        if self in self.connections:
            self._await_taking()

    def _await_taking(self) -> None:
        if self._writing is None:
            self.awaited.add(self)
            self._taken = taken_bytes(self.transport)
            self._writing = self.loop.call_later(self.settings.send_seconds, self._cut_off_unless_it_takes)

    def _await_no_more(self) -> None:
        self.awaited.discard(self)
        self._writing = _disarmed(self._writing)

    def _cut_off_unless_it_takes(self) -> None:
        self._writing = None
        enough = _LEAST_BYTES_TAKEN * self.settings.send_seconds
        if taken_bytes(self.transport) - self._taken >= enough and self._has_memory():
            self._await_taking()
        else:
            self._cut_off()

    def _has_memory(self) -> bool:
        """Whether there is room for all the answers that clients have not taken: each of them may be large."""
        untaken = sum(connection.transport.get_write_buffer_size() for connection in self.awaited)
        return untaken <= self.settings.max_buffered_bytes

    def _cut_off(self) -> None:
        # With SO_LINGER 0, or the kernel would keep what was not taken for minutes.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, problem: ProblemError) -> None:
        """Answer bytes that never became a request of the application with a problem, in their turn, and close.

        The requests before them are answered first: RFC 9112, 9.3.2. If the bytes are a malformed body, the problem is
        the answer to the request with that body, unless the application has begun to answer it.
        """
        if self._last_words is not None:
            return
        self._last_words = _written(problem)
        if self._sending is _Sending.BODY:
            if self.pipeline:  # its newest request has that body: still waiting for its turn, it is dropped
                self.pipeline.popleft()
                self.cycle = self._earlier  # type: ignore[assignment]
            elif self.cycle.response_started:
                self._last_words = b""
            else:
                self.metrics.refused(UNKNOWN_MODEL, problem.reason)
                # A route may be waiting for the rest of the body.
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                self._leave(self._last_words)
                return
        if self._last_words:
            self.metrics.refused(UNKNOWN_MODEL, problem.reason)
        if self.cycle is None or self.cycle.response_complete:
            self._leave(self._last_words)
        else:
            self.flow.resume_reading()  # or it would go unnoticed when the client leaves

    def _leave(self, last_words: bytes) -> None:
        self.transport.write(last_words)
        self.transport.close()


def _written(problem: ProblemError) -> bytes:
    request_id = f"{random.getrandbits(128):032x}"
    response = problem_response(problem, request_id)
    response.headers[REQUEST_ID] = request_id
    secure(response.headers)
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [STATUS_LINE[response.status_code], *(b"%b: %b\r\n" % header for header in headers), b"\r\n"]
    return b"".join(lines) + bytes(response.body)


def _disarmed(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel `timer`, if there is one; returns the None that takes its place."""
    if timer is not None:
        timer.cancel()
    return None
