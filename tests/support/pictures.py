"""Image files that no library writes on request: 16-bit PNG, odd TIFFs, headers that promise what is not there."""

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


def tiled_tiff(side: int, tile: int, *, deflated: bool = True) -> bytes:
    """A little-endian grey TIFF of side² zeros, in square tiles that all have the same bytes."""
    pixels = zlib.compress(bytes(tile * tile)) if deflated else bytes(tile * tile)
    count = (-(-side // tile)) ** 2
    tags = {256: side, 257: side, 258: 8, 259: 8 if deflated else 1, 262: 1, 277: 1, 322: tile, 323: tile}
    pixels_at = 8 + 2 + 12 * (len(tags) + 2) + 4
    lists_at = pixels_at + len(pixels)
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    for tag, value, at in ((324, pixels_at, lists_at), (325, len(pixels), lists_at + 4 * count)):
        entries.append(struct.pack("<HHII", tag, 4, count, value if count == 1 else at))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    lists = b"" if count == 1 else struct.pack("<I", pixels_at) * count + struct.pack("<I", len(pixels)) * count
    return b"II*\0" + struct.pack("<I", 8) + directory + pixels + lists


def cut_off_tiff(side: int) -> bytes:
    """A grey TIFF of side² zeros in tiles of one pixel, whose directory promises one entry more and ends within it."""
    count = side * side
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1, 322: 1, 323: 1}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    entries.append(struct.pack("<HHII", 324, 4, count, 8))
    lists = struct.pack("<I", 8) * count
    directory = struct.pack("<H", len(entries) + 1) + b"".join(entries)
    return b"II*\0" + struct.pack("<I", 8 + len(lists)) + lists + directory + b"\0\0\0"


def endless_tiff(entries: int) -> bytes:
    """A BigTIFF of a page with that many useless entries, followed by itself."""
    page = struct.pack("<Q", entries) + struct.pack("<HHQQ", 65000, 4, 1, 0) * entries
    return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + page + struct.pack("<Q", 16)


def tiff(height: int, width: int, samples: int, *, bits: int = 8, rgb: bool = False, extra: int | None = None) -> bytes:
    """An uncompressed little-endian TIFF of zeros; samples beyond grey or RGB are of the kind `extra`."""
    pixels = bytes(bits // 8 * height * width * samples)
    tags: dict[int, Sequence[int]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * samples,
        259: (1,),
        262: (2 if rgb else 1,),
        273: (8,),
        277: (samples,),
        278: (height,),
        284: (1,),
    }
    if extra is not None:
        tags[338] = (extra,) * (samples - (3 if rgb else 1))
    directory_at = 8 + len(pixels)
    behind_at = directory_at + 2 + 12 * len(tags) + 4
    entries = behind = b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, behind = struct.pack("<I", behind_at + len(behind)), behind + packed
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", directory_at) + pixels + directory + behind


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
