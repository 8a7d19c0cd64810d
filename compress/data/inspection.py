"""One image and its mask, each read from disk once: hashes, sizes, what the pixels hold.

H height, W width, C channels.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.data.classes import ClassTable
from compress.data.folder import ChannelChoice, is_coloured
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
    unread_pages: bool
    """There are more pages than the one that was read."""
    picture: str | None
    """Hex SHA-256 of the decoded pixels; None for an image of a single value, which equals any other such image."""


@dataclass(frozen=True)
class SeenMask:
    """What a mask file showed."""

    digest: str
    size: tuple[int, int]
    lossy: bool
    histogram: tuple[int, ...] = ()
    """How many pixels have each of the program's 256 numbers; empty when classes.json cannot be used."""
    is_palette_image: bool = False
    numbers: tuple[int, ...] = ()
    """As in `Mask`, like the two fields that follow."""
    unknown_numbers: tuple[int, ...] = ()
    unknown_colours: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class OtherChannels:
    """An image that is sound but does not have the channels asked for."""

    problem: str
    """What it has and what is needed instead; in the same words for every such file."""


@dataclass(frozen=True)
class Seen:
    """A pair; a file that could not be read is represented by a message."""

    image: SeenImage | OtherChannels | str
    mask: SeenMask | str


class Inspector:
    """Looks at the pairs of one dataset."""

    def __init__(self, table: ClassTable | None, channels: ChannelChoice) -> None:
        self._reader = MaskReader(table) if table else None
        self._bands = channels if channels != "auto" and channels not in (1, 3) else None

    def look(self, sample: Sample) -> Seen:
        """Read both files. Problems with them are returned, not raised."""
        return Seen(self._image(sample.image), self._mask(sample.mask))

    def _image(self, path: Path) -> SeenImage | OtherChannels | str:
        try:
            content = path.read_bytes()
            header = read_header(content)
            # Colour shows only in RGB, so a file that is not grey is decoded as RGB whatever is asked for.
            pixels = decode(content, self._bands or (1 if header.is_grey else 3))
        except (ImageError, OSError) as error:
            wrong_channels = isinstance(error, ImageError) and error.reason == "channels"
            return OtherChannels(str(error)) if wrong_channels else str(error)
        coloured = pixels.shape[2] == 3 and is_coloured(pixels)
        shown = pixels if coloured or self._bands else np.ascontiguousarray(pixels[..., :1])
        unread_pages = header.pages > 1 and self._bands is None
        return SeenImage(_sha256(content), _size(pixels), coloured, unread_pages, _picture(shown))

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
