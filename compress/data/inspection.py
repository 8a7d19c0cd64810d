"""One image and its mask, each read from disk once: hashes, sizes, what the pixels hold.

H height, W width, C channels.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.data.classes import ClassTable
from compress.data.folder import is_coloured
from compress.data.layout import Sample
from compress.data.masks import MaskReader
from export.errors import ImageError
from export.images import U8, decode, decode_indices, read_header


@dataclass(frozen=True)
class SeenImage:
    """What an image file showed."""

    digest: str
    """Hex SHA-256 of the file."""
    size: tuple[int, int]
    """Height, width."""
    coloured: bool
    picture: str | None
    """Hex SHA-256 of the decoded pixels; None for an image of one single value, which resembles any other."""


@dataclass(frozen=True)
class SeenMask:
    """What a mask file showed."""

    digest: str
    size: tuple[int, int]
    lossy: bool
    histogram: tuple[int, ...] = ()
    """Pixels of each of the 256 numbers inside the program; empty when classes.json cannot be used."""
    is_palette_image: bool = False
    numbers: tuple[int, ...] = ()
    """As `Mask` has them, like the two that follow."""
    unknown_numbers: tuple[int, ...] = ()
    unknown_colours: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Seen:
    """A pair; a message stands where a file could not be read."""

    image: SeenImage | str
    mask: SeenMask | str


class Inspector:
    """Looks at the pairs of one dataset."""

    def __init__(self, table: ClassTable | None) -> None:
        self._reader = MaskReader(table) if table else None

    def look(self, sample: Sample) -> Seen:
        """Read both files. Raises nothing that the files could cause."""
        return Seen(self._image(sample.image), self._mask(sample.mask))

    def _image(self, path: Path) -> SeenImage | str:
        try:
            content = path.read_bytes()
            grey = read_header(content).is_grey
            pixels = decode(content, 1 if grey else 3)
        except (ImageError, OSError) as error:
            return str(error)
        coloured = not grey and is_coloured(pixels)
        shown = pixels if coloured else np.ascontiguousarray(pixels[..., :1])
        return SeenImage(_sha256(content), _size(pixels), coloured, _picture(shown))

    def _mask(self, path: Path) -> SeenMask | str:
        try:
            content = path.read_bytes()
            lossy = read_header(content).format == "JPEG"
            if self._reader is None:
                return SeenMask(_sha256(content), _size(decode_indices(content)), lossy)
            mask = self._reader.read(content)
        except (ImageError, OSError) as error:
            return str(error)
        return SeenMask(
            _sha256(content),
            _size(mask.indices),
            lossy,
            tuple(np.bincount(mask.indices.ravel(), minlength=256).tolist()),
            mask.is_palette_image,
            mask.numbers,
            mask.unknown_numbers,
            mask.unknown_colours,
        )


def _size(pixels: U8) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _picture(pixels_HWC: U8) -> str | None:
    if pixels_HWC.min() == pixels_HWC.max():
        return None
    return hashlib.sha256(repr(pixels_HWC.shape).encode() + pixels_HWC.tobytes()).hexdigest()
