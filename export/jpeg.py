"""JPEG files whose decoding would take time out of all proportion.

A progressive JPEG refines its pixels scan by scan, and libjpeg goes through all of them for each, also for one of a few
bytes that changes nothing: minutes of work fit into a file of some hundred KB. Real files have 10 to 20 scans.
"""

import re
from typing import Final

from export.errors import ImageError

MAX_SCANS: Final = 100
"""As many as libtiff takes of the JPEGs within a TIFF."""
_MAX_SEGMENTS: Final = 10_000
"""Of 64 KB at most each, so that real files stay far below it; it bounds the counting itself."""

_END: Final = 0xD9
_SCAN: Final = 0xDA

# A marker with a length behind it, or the end. Not: a stuffed 0xFF of the pixels, a filling one, restarts in a scan.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def check_scans(content: bytes) -> None:
    """Refuse more than `MAX_SCANS` in the first image of a JPEG file.

    Raises ImageError.
    """
    # Thumbnails have scans as well, and what follows the image has such bytes by chance: only files with many are read.
    if content.count(bytes((0xFF, _SCAN))) > MAX_SCANS and not _has_few_scans(content):
        raise ImageError(
            f"a JPEG of more than {MAX_SCANS} scans, which would take long to decode; save it anew", reason="too_large"
        )


def _has_few_scans(content: bytes) -> bool:
    """Goes from marker to marker up to the end of the first image. Source: ITU-T T.81, B.1.1."""
    scans = place = 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(content, place)
        if marker is None or content[marker.end() - 1] == _END:
            return True
        place = marker.end()
        scans += content[place - 1] == _SCAN
        if scans > MAX_SCANS:
            return False
        place += max(2, int.from_bytes(content[place : place + 2], "big"))
    return False
