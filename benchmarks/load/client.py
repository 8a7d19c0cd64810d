"""One persistent HTTP/1.1 connection over plain asyncio streams.

A general client spends more CPU time on a request than the server's HTTP code does, and here both share the cores.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

from export.errors import UsageError


@dataclass(frozen=True)
class Target:
    """Where the requests go."""

    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Raises UsageError for anything but http://HOST[:PORT]/PATH."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as error:
            raise UsageError(f"{url} is not a URL: {error}") from error
        if parts.scheme != "http" or not host:
            raise UsageError(f"{url} is not of the form http://HOST:PORT/PATH")
        return cls(host, port, parts.path or "/")

    def get(self, path: str) -> bytes:
        """A whole request for `path` on the same server."""
        return f"GET {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n\r\n".encode("ascii")

    def post(self, body: bytes, content_type: str) -> bytes:
        """A whole request, made once and sent many times."""
        lines = (
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + body


class Connection:
    """Sends one request after another; opens when needed, and again if the server has closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, request: bytes) -> int:
        """Send `request` and return the status once the whole body has arrived.

        A request is never sent twice. Raises OSError, or EOFError for an answer that breaks off; the
        connection is then closed, as it is when the task is cancelled.
        """
        whole = False
        try:
            if self._streams is not None and self._streams[0].at_eof():
                self.close()  # the server had closed it while it was idle
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._target.host, self._target.port)
            reader, writer = self._streams
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers = _parsed(head)
            await reader.readexactly(int(headers[b"content-length"]))
            whole = headers.get(b"connection", b"").lower() != b"close"
        except (ValueError, KeyError, asyncio.LimitOverrunError) as error:
            raise EOFError("the answer has no readable head with a Content-Length") from error
        finally:
            if not whole:
                self.close()
        return status

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _parsed(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head[:-4].split(b"\r\n")
    fields = (line.partition(b":") for line in lines)
    return int(first.split(b" ", 2)[1]), {name.strip().lower(): value.strip() for name, _, value in fields}
