"""Translate a mask file to class numbers: by number, by `values`, or by colour, as classes.json declares.

H height, W width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.classes import ClassTable
from export.images import U8, Header, decode, decode_indices, read_header
from export.scoring import VOID

_COLOURS_KEPT = 64
"""How many undeclared colours are listed; a photograph given as a mask has thousands."""


_NUMBER_MODES = frozenset({"1", "L", "LA"})
_PALETTE_MODES = frozenset({"P", "PA"})


@dataclass(frozen=True)
class Mask:
    """One mask, read."""

    header: Header
    indices: U8
    """Class numbers HW, VOID for void and for undeclared values."""
    numbers: tuple[int, ...]
    """The numbers that a single-channel mask holds; none for a colour mask."""
    unknown_numbers: tuple[int, ...]
    """Those that are neither a class nor void."""
    unknown_colours: tuple[tuple[int, int, int], ...]
    """RGB of pixels whose colour is not in the palette."""

    @property
    def is_palette_image(self) -> bool:
        return self.header.mode in _PALETTE_MODES


class MaskReader:
    """Reads the masks of one dataset."""

    def __init__(self, table: ClassTable) -> None:
        self._class_of_number = np.full(256, VOID, dtype=np.uint8)
        self._number_known = np.zeros(256, dtype=bool)
        for number, index in table.numbers().items():
            self._class_of_number[number] = index
            self._number_known[number] = True
        self._has_palette = table.palette is not None
        declared = {_packed(colour): table.number_of(name) for name, colour in (table.palette or {}).items()}
        self._colours = np.array(sorted(declared), dtype=np.uint32)
        self._class_of_colour = np.array([declared[colour] for colour in sorted(declared)], dtype=np.uint8)

    def read(self, source: bytes | Path) -> Mask:
        """Decode and translate.

        A palette image is read by its colours if a palette is declared, else by its stored numbers.
        Raises ImageError when the file cannot be decoded.
        """
        header = read_header(source)
        if header.mode in _NUMBER_MODES or (header.mode in _PALETTE_MODES and not self._has_palette):
            stored = decode_indices(source)
            return self._by_number(header, stored if stored.ndim == 2 else np.ascontiguousarray(stored[..., 0]))
        return self._by_colour(header, decode(source, 3))

    def _by_number(self, header: Header, stored_HW: U8) -> Mask:
        held = np.flatnonzero(np.bincount(stored_HW.ravel(), minlength=256))
        unknown = held[~self._number_known[held]]
        return Mask(header, self._class_of_number[stored_HW], tuple(held.tolist()), tuple(unknown.tolist()), ())

    def _by_colour(self, header: Header, stored_HWC: U8) -> Mask:
        held, place = np.unique(_packed_pixels(stored_HWC), return_inverse=True)
        position = np.searchsorted(self._colours, held)
        classes = np.full(len(held), VOID, dtype=np.uint8)
        known = np.isin(held, self._colours)
        classes[known] = self._class_of_colour[position[known]]
        unknown = tuple(
            (colour >> 16, colour >> 8 & 255, colour & 255) for colour in held[~known][:_COLOURS_KEPT].tolist()
        )
        return Mask(header, classes[place].reshape(stored_HWC.shape[:2]), (), (), unknown)


def _packed(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _packed_pixels(pixels_HWC: U8) -> NDArray[np.uint32]:
    wide = pixels_HWC.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], dtype=np.uint32)
