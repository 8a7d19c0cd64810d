"""Hostile clients: what each kind sends, and how a server should respond."""

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.load.client import Target
from benchmarks.report.load.results import CLIENT_ERROR

_TIMEOUT_SECONDS = 30.0
_LARGE = 40 * 2**20
_CHUNK = 2**16
_SLOW_BYTES = 3

GONE = "gone"
"""The client left before there was an answer."""
CLOSED = "closed"
"""The server ended the connection without an answer."""
SILENT = "silent"
"""No answer within half a minute."""


@dataclass(frozen=True)
class Hostile:
    """One kind of client."""

    act: Callable[[Target, bytes], Awaitable[str]]
    """Takes the target and a whole good request; returns the status of the answer, or one of the above."""
    accepted: frozenset[str]
    """Outcomes that are acceptable, as `is_accepted` reads them."""


def _png(width: int, height: int) -> bytes:
    """A PNG whose header promises `width` x `height` pixels, with only a few rows behind it."""
    row = bytes(1 + 3 * width)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 8)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


async def _garbage(target: Target, _: bytes) -> str:
    return await _exchange(target, target.post(bytes(range(256)) * 8, "image/png"))


async def _bomb(target: Target, _: bytes) -> str:
    return await _exchange(target, target.post(_png(50_000, 50_000), "image/png"))


async def _large(target: Target, _: bytes) -> str:
    head = target.post(b"", "image/png").replace(b"Content-Length: 0", b"Content-Length: %d" % _LARGE)
    return await _exchange(target, head, more=[bytes(_CHUNK)] * (_LARGE // _CHUNK))


async def _unannounced(target: Target, _: bytes) -> str:
    head = target.post(b"", "image/png").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunk = b"%x\r\n%b\r\n" % (_CHUNK, bytes(_CHUNK))
    return await _exchange(target, head, more=[chunk] * (_LARGE // _CHUNK))


async def _not_http(target: Target, _: bytes) -> str:
    return await _exchange(target, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n")


async def _leaves(target: Target, good: bytes) -> str:
    _, writer = await asyncio.open_connection(target.host, target.port)
    writer.write(good)
    await writer.drain()
    writer.transport.abort()
    return GONE


async def _half(target: Target, good: bytes) -> str:
    _, writer = await asyncio.open_connection(target.host, target.port)
    writer.write(good[: len(good) // 2])
    await writer.drain()
    await asyncio.sleep(0.5)
    writer.transport.abort()
    return GONE


async def _slow(target: Target, good: bytes) -> str:
    _, writer = await asyncio.open_connection(target.host, target.port)
    for byte in range(_SLOW_BYTES):
        writer.write(good[byte : byte + 1])
        await writer.drain()
        await asyncio.sleep(1)
    writer.transport.abort()
    return GONE


# A server that reads all of it finds zeros, which are no image: refusing them then is as good as stopping early.
_REFUSED_LARGE = frozenset({CLIENT_ERROR, CLOSED})

KINDS: Mapping[str, Hostile] = {
    "garbage": Hostile(_garbage, frozenset({"400", "415", "422"})),
    "decompression bomb": Hostile(_bomb, frozenset({"400", "413", "415", "422"})),
    "40 MB body": Hostile(_large, _REFUSED_LARGE),
    "40 MB body of unannounced length": Hostile(_unannounced, _REFUSED_LARGE),
    "no HTTP": Hostile(_not_http, frozenset({"400", CLOSED})),
    "leaves at once": Hostile(_leaves, frozenset({GONE})),
    "leaves within its upload": Hostile(_half, frozenset({GONE})),
    "a byte a second": Hostile(_slow, frozenset({GONE})),
}


async def attack(name: str, target: Target, good: bytes) -> str:
    """Be one of KINDS once; return the outcome. A server that cannot be reached counts as CLOSED."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return await KINDS[name].act(target, good)
    except TimeoutError:
        return SILENT
    except OSError:
        return CLOSED


async def _exchange(target: Target, request: bytes, more: Sequence[bytes] = ()) -> str:
    """Send all of it unless an answer comes first; return the status."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        sending = asyncio.create_task(_send(writer, [request, *more]))
        try:
            first = await reader.readline()
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending
        parts = first.split()
        return parts[1].decode("ascii", "replace") if len(parts) > 1 else CLOSED
    finally:
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, parts: list[bytes]) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()
