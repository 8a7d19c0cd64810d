"""Image files that no library writes on request: 16-bit PNG and TIFF, headers that promise what is not there."""

import struct
import zlib
from collections.abc import Sequence

PNG_COLOUR_TYPES = {"grey": (0, 1), "rgb": (2, 3), "grey+alpha": (4, 2), "rgb+alpha": (6, 4)}
"""Number in the header, and channels."""


def png(height: int, width: int, colours: str, *, bits: int = 8, pixels: bytes | None = None) -> bytes:
    """A PNG of these dimensions; `pixels` are rows without filter bytes, zeros by default."""
    number, channels = PNG_COLOUR_TYPES[colours]
    stride = width * channels * bits // 8
    rows = pixels or bytes(stride * height)
    filtered = b"".join(b"\0" + rows[start : start + stride] for start in range(0, stride * height, stride))
    return _png(height, width, number, bits, filtered)


def promising_png(height: int, width: int) -> bytes:
    """A few bytes whose header promises height x width RGB pixels, and that hold none."""
    return _png(height, width, PNG_COLOUR_TYPES["rgb"][0], 8, b"")


def _png(height: int, width: int, colour_type: int, bits: int, filtered: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(filtered)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff_of_16_bits(height: int, width: int, channels: int) -> bytes:
    """An uncompressed little-endian TIFF, grey or RGB."""
    data = bytes(2 * height * width * channels)
    tags: Sequence[tuple[int, int, int, int]] = (
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, 16 if channels == 1 else 134),
        (259, 3, 1, 1),
        (262, 3, 1, 1 if channels == 1 else 2),
        (273, 4, 1, 140),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    )
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + struct.pack("<3H", 16, 16, 16)
    return start + data


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
