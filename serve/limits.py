"""What is refused before any work is done: bodies too large or too slow, and too many at once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from serve.problems import CLIENT_CLOSED_REQUEST, ProblemError
from serve.settings import ServeSettings

T = TypeVar("T")

_SMALL_BYTES = 65536
_DISCARD_SECONDS = 2.0
_DISCARD_BYTES = 256 * 2**20
_MOMENT_SECONDS = 0.25


class _Unseen:
    """A body that is received elsewhere, and of which nothing is seen until it is complete."""

    def __init__(self, client: str, limit: asyncio.Timeout) -> None:
        self.client = client
        self.is_refused = False
        self._limit = limit

    def refuse(self) -> None:
        """Stop waiting for it."""
        if not self._limit.expired():
            self.is_refused = True
            self._limit.reschedule(0)  # a time in the past: it expires at once


class BodyReader:
    """Reads bodies within the limits of one request and of all requests together."""

    def __init__(self, settings: ServeSettings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._max_buffered_bytes = settings.max_buffered_bytes
        self._upload_seconds = settings.upload_seconds
        # The other half of the calls over gRPC is left to those that send their message at once.
        places = min(settings.max_buffered_bytes // 2 // settings.max_body_bytes, settings.max_connections // 2)
        self._places = max(1, places)
        self._unseen: list[_Unseen] = []
        """Those that have a place, in the order in which they got it."""
        self.buffered_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, counted against the memory for all bodies until the block is left.

        Raises ProblemError 413 (too large, announced or not), 408 (too slow), 429 (too many bodies at once),
        400 (empty), 499 (the client left).
        """
        if self._announces_too_much(request):
            await self.discard(request)
            raise self._too_large()
        chunks: list[bytes] = []
        try:
            await self._receive(request, chunks)
            if not chunks:
                raise ProblemError(400, "empty", "the body is empty; send the bytes of one image file")
            chunks[:] = [b"".join(chunks)]
            yield chunks[0]
        finally:
            self.buffered_bytes -= sum(map(len, chunks))

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count a body of `size` bytes that was received elsewhere, until the block is left.

        Raises ProblemError 429 when it does not fit beside the others.
        """
        self._check_room(size)
        self.buffered_bytes += size
        try:
            yield
        finally:
            self.buffered_bytes -= size

    async def received(self, receive: Coroutine[Any, Any, T], client: str) -> T:
        """What `receive` gives: a body from `client` that is received elsewhere, and of which nothing is seen until it
        is complete.

        One that takes longer than a moment needs a place, of which there are few, and counts as a body of
        `max_body_bytes`. When all places are taken, the client with the most gives one up to a client with at least two
        fewer: otherwise clients that send nothing could keep the places from all others.

        Raises ProblemError 408 (too slow), 429 (too many at once), and whatever `receive` raises.
        """
        limit = asyncio.timeout(self._upload_seconds)
        unseen = _Unseen(client, limit)
        try:
            async with limit:
                timer = asyncio.get_running_loop().call_later(_MOMENT_SECONDS, self._give_place, unseen)
                try:
                    return await receive
                finally:
                    timer.cancel()
        except TimeoutError:
            raise (self._no_place() if unseen.is_refused else self._too_slow()) from None
        finally:
            self._free_place(unseen)

    def check_small(self, size: int) -> None:
        """Raises ProblemError 413 for a body that is larger than a few settings."""
        if size > _SMALL_BYTES:
            raise ProblemError(413, "body_too_large", f"at most {_SMALL_BYTES} bytes are accepted here")

    async def small(self, request: Request) -> bytes:
        """A body of a few settings, which may be empty.

        Raises ProblemError 413 for a larger one, and the others of `body`.
        """
        if request.headers.get("content-length") == "0":
            return b""
        try:
            async with self.body(request) as content:
                self.check_small(len(content))
                return content
        except ProblemError as problem:
            if problem.reason == "empty":
                return b""
            raise

    async def discard(self, request: Request) -> None:
        """Read a body that is not wanted, or closing the connection might reset it before the answer arrives.

        Not where the client asked first (RFC 9110, 10.1.1): to read would be to answer that it may send.
        """
        if request.headers.get("expect", "").lower() == "100-continue":
            return
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_DISCARD_SECONDS), aclosing(request.stream()) as stream:
                discarded = 0
                async for chunk in stream:
                    discarded += len(chunk)
                    if discarded > _DISCARD_BYTES:
                        return

    async def _receive(self, request: Request, chunks: list[bytes]) -> None:
        received = 0
        try:
            async with asyncio.timeout(self._upload_seconds), aclosing(request.stream()) as stream:
                async for chunk in stream:
                    received += len(chunk)
                    if received > self._max_body_bytes:
                        break
                    if chunk:
                        self._check_room(len(chunk))
                        chunks.append(chunk)
                        self.buffered_bytes += len(chunk)
                else:
                    return
        except TimeoutError:
            raise self._too_slow() from None
        except ClientDisconnect:
            raise ProblemError(CLIENT_CLOSED_REQUEST, "disconnected", "the client left during its upload") from None
        await self.discard(request)
        raise self._too_large()

    def _announces_too_much(self, request: Request) -> bool:
        announced = request.headers.get("content-length", "").lstrip("0")
        return announced.isdecimal() and (len(announced) > 18 or int(announced) > self._max_body_bytes)

    def _check_room(self, more: int) -> None:
        if self.buffered_bytes + more > self._max_buffered_bytes:
            raise self._no_room()

    def _give_place(self, unseen: _Unseen) -> None:
        if not self._has_place():
            gives_way = self._gives_way_to(unseen.client)
            if gives_way is None:
                unseen.refuse()
                return
            gives_way.refuse()
            self._free_place(gives_way)
        self._unseen.append(unseen)
        self.buffered_bytes += self._max_body_bytes

    def _free_place(self, unseen: _Unseen) -> None:
        if unseen in self._unseen:
            self._unseen.remove(unseen)
            self.buffered_bytes -= self._max_body_bytes

    def _has_place(self) -> bool:
        has_memory = self.buffered_bytes + self._max_body_bytes <= self._max_buffered_bytes
        return has_memory and len(self._unseen) < self._places

    def _gives_way_to(self, client: str) -> _Unseen | None:
        """The newest place of the client that has the most, since its oldest is nearest to its end; None if that client
        would then have fewer than `client`."""
        held = Counter(unseen.client for unseen in self._unseen)
        most = max(held.values(), default=0)
        if most <= held[client] + 1:
            return None
        return next(unseen for unseen in reversed(self._unseen) if held[unseen.client] == most)

    def _no_place(self) -> ProblemError:
        detail = "incomplete messages take up all the places set aside for them; send this one faster, or try again"
        return ProblemError(429, "memory", detail, headers={"Retry-After": "1"})

    def _no_room(self) -> ProblemError:
        detail = f"the images being received fill the {self._max_buffered_bytes} bytes set aside for them; try again"
        return ProblemError(429, "memory", detail, headers={"Retry-After": "1"})

    def _too_slow(self) -> ProblemError:
        detail = f"the body was not complete after {self._upload_seconds:g} s; send a smaller image, or send it faster"
        return ProblemError(408, "slow_upload", detail, headers={"Connection": "close"})

    def _too_large(self) -> ProblemError:
        detail = f"the body is larger than {self._max_body_bytes} bytes; send a smaller image"
        return ProblemError(413, "body_too_large", detail, headers={"Connection": "close"})
