"""Refuse image files in more pieces than any program writes, whose decoding would take time out of all proportion.

Pillow goes through the segments of a JPEG, the chunks of a PNG and the tiles of a TIFF one by one, in Python. A
progressive JPEG refines its pixels scan by scan, and libjpeg visits every pixel in each, even in a scan of a few bytes
that changes nothing: minutes of work fit into a file of a few hundred KB. Real files have 10 to 20 scans.
"""

import re
import struct
from typing import Final

from export.errors import ImageError

MAX_SCANS: Final = 100
"""libtiff's limit for a JPEG within a TIFF."""
MAX_PIECES: Final = 20_000
"""libpng's chunks of 8 KB reach this in a file of 160 MB; a JPEG, with segments of up to 64 KB, in a far larger one."""
MAX_TILES: Final = 100_000
"""Strips or tiles of all pages of a TIFF, and entries of their directories, which Pillow lists before it tells a page's
size: a second of work. Some programs write a strip for each row."""
_MAX_PAGES: Final = 128
"""More are never read."""
_MAX_FILLING: Final = 4096
"""Bytes that may precede a marker."""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II", b"MM")
_OFFSETS = (273, 324)
"""The tags StripOffsets and TileOffsets, which have a value for each strip or tile."""
_END: Final = 0xD9
_SCAN: Final = 0xDA

# A marker that a length follows, or the end. Not: a 0xFF stuffed into pixel data, a fill byte, a restart in a scan.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def check_pieces(content: bytes) -> None:
    """Refuse a JPEG, PNG or TIFF in too many pieces; other files pass.

    Raises ImageError.
    """
    if (content.startswith(_JPEG) and not _has_short_head(content)) or (
        content.startswith(_PNG) and not _has_few_chunks(content)
    ):
        raise ImageError(
            "in more pieces than any program writes, which would take long to read; save it again", reason="too_large"
        )
    if content.startswith(_TIFF) and not _has_few_tiles(content):
        raise ImageError(f"a TIFF in more pieces than {MAX_TILES}; save it with larger tiles", reason="too_large")


def check_scans(content: bytes) -> None:
    """Refuse more than `MAX_SCANS` in the first image of a JPEG file.

    Raises ImageError.
    """
    # Thumbnails have scans too, and data behind the image may hold such bytes by chance: only files with many are read.
    if content.count(bytes((0xFF, _SCAN))) > MAX_SCANS and not _has_few_scans(content):
        raise ImageError(
            f"a JPEG of more than {MAX_SCANS} scans, which would take long to decode; save it again", reason="too_large"
        )


def _has_short_head(content: bytes) -> bool:
    """Whether few segments of a JPEG precede its first scan."""
    place = len(_JPEG)
    for _ in range(MAX_PIECES):
        marker = _MARKER.search(content, place, place + _MAX_FILLING)
        if marker is None:
            return place + _MAX_FILLING > len(content)  # a truncated file is the decoder's to report
        if content[marker.end() - 1] in (_SCAN, _END):
            return True
        place = _segment_end(content, marker.end())
    return False


def _has_few_scans(content: bytes) -> bool:
    """Go from marker to marker up to the end of the first image. Source: ITU-T T.81, B.1.1."""
    scans = place = 0
    for _ in range(MAX_PIECES):
        marker = _MARKER.search(content, place)
        if marker is None or content[marker.end() - 1] == _END:
            return True
        scans += content[marker.end() - 1] == _SCAN
        if scans > MAX_SCANS:
            return False
        place = _segment_end(content, marker.end())
    return False


def _segment_end(content: bytes, place: int) -> int:
    """End of the segment whose length is stored at `place`."""
    return place + max(2, int.from_bytes(content[place : place + 2], "big"))


def _has_few_chunks(content: bytes) -> bool:
    """Source: PNG (third edition), 5.3: length, type, data, CRC."""
    place = len(_PNG)
    for _ in range(MAX_PIECES):
        if place >= len(content):
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return False


def _has_few_tiles(content: bytes) -> bool:
    """Go from page to page. Source: TIFF 6.0, section 2, and libtiff's BigTIFF, which has the number 43 for 42."""
    order = "<" if content.startswith(b"II") else ">"
    is_big = content[2:3] == b"+"  # as Pillow tells the two apart
    count_form, entry, offset_form = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    pieces, at = 0, 8 if is_big else 4
    try:
        for _ in range(_MAX_PAGES):
            (page,) = struct.unpack_from(order + offset_form, content, at)
            if page == 0:
                break
            (entries,) = struct.unpack_from(order + count_form, content, page)
            pieces += entries
            if pieces > MAX_TILES:
                return False
            first, size = page + struct.calcsize(count_form), struct.calcsize(order + entry)
            at = first + entries * size
            # Pillow takes the whole entries of a directory that is cut off.
            there = min(entries, (len(content) - first) // size)
            for tag, _, values, _ in struct.iter_unpack(order + entry, content[first : first + there * size]):
                pieces += values if tag in _OFFSETS else 0
    except struct.error:
        pass  # a truncated file is the decoder's to report
    return pieces <= MAX_TILES
