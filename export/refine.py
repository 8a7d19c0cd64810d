"""Test-time augmentation by mirroring, and sliding-window inference. Both average probabilities and take more runs.

K classes, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.images import U8

Figures = NDArray[np.float32]
Probabilities = Callable[[U8], Figures]
"""Image HWC to the probabilities of each class KHW, at the size of the image."""

LEAST_OVERLAP = 0.25
"""Overlap of neighbouring windows, as a share of their side."""


@dataclass(frozen=True)
class Refinement:
    """How an image is looked at; by default once, as a whole."""

    mirrored: bool = False
    """Both as it is and mirrored left to right."""
    window: tuple[int, int] | None = None
    """(height, width) of what the model sees at once: for images that are larger than those it was trained on, or than
    memory allows."""

    def __bool__(self) -> bool:
        return self.mirrored or self.window is not None

    def refined(self, probabilities: Probabilities) -> Probabilities:
        if self.window is not None:
            probabilities = windowed(probabilities, self.window)
        return mirrored(probabilities) if self.mirrored else probabilities


def best_of(probabilities: Probabilities) -> Callable[[U8], U8]:
    """Image HWC to mask HW."""

    def segment(image_HWC: U8) -> U8:
        mask: U8 = probabilities(image_HWC).argmax(axis=0).astype(np.uint8)
        return mask

    return segment


def mirrored(probabilities: Probabilities) -> Probabilities:
    """The mean over the image and its mirror image."""

    def both(image_HWC: U8) -> Figures:
        turned = probabilities(np.ascontiguousarray(image_HWC[:, ::-1]))[..., ::-1]
        return np.asarray((probabilities(image_HWC) + turned) / 2, dtype=np.float32)

    return both


def windowed(probabilities: Probabilities, window: tuple[int, int]) -> Probabilities:
    """The probabilities of windows that overlap, put together by a `Blend`."""

    def whole(image_HWC: U8) -> Figures:
        blend = Blend((image_HWC.shape[0], image_HWC.shape[1]), window)
        strips = [blend.add(probabilities(np.ascontiguousarray(image_HWC[place]))) for place in blend.windows]
        return np.concatenate([strip for strip in strips if strip is not None], axis=1)

    return whole


class Blend:
    """The windows of one image, row by row, and what was found in them put together.

    They overlap by at least `LEAST_OVERLAP`, the last ones flush with the image's edge. Where windows overlap, each
    counts the more the further inside it a pixel lies: at its edge a window sees least context. Memory holds one row of
    windows.
    """

    def __init__(self, size: tuple[int, int], window: tuple[int, int]) -> None:
        """`size` is the image's (height, width); windows are no larger than it."""
        self._width = size[1]
        self._rows = list(places(size[0], window[0]))
        self._columns = list(places(size[1], window[1]))
        self.windows = [(rows, columns) for rows in self._rows for columns in self._columns]
        """In the order in which they are added."""
        self._added = 0
        self._sums_KHW = np.empty((0, 0, 0), dtype=np.float32)
        self._weights_HW = np.empty((0, 0), dtype=np.float32)

    @property
    def is_complete(self) -> bool:
        return self._added == len(self.windows)

    def add(self, found_KHW: Figures) -> Figures | None:
        """Add what was found in the next window; return the rows that no later window reaches, once a row is full."""
        rows, columns = self.windows[self._added]
        if self._added == 0:
            height = rows.stop - rows.start
            self._sums_KHW = np.zeros((len(found_KHW), height, self._width), dtype=np.float32)
            self._weights_HW = np.zeros((height, self._width), dtype=np.float32)
        weight_HW = _tent(rows)[:, None] * _tent(columns)[None, :]
        self._sums_KHW[:, :, columns] += found_KHW * weight_HW
        self._weights_HW[:, columns] += weight_HW
        self._added += 1
        row, column = divmod(self._added, len(self._columns))
        if column:
            return None
        return self._taken((rows.stop if self.is_complete else self._rows[row].start) - rows.start)

    def _taken(self, rows: int) -> Figures:
        """Return the first `rows` rows held, and move those below up to where the next windows begin."""
        strip_KHW = np.asarray(self._sums_KHW[:, :rows] / self._weights_HW[:rows], dtype=np.float32)
        for held in (self._sums_KHW, self._weights_HW):
            left = held.shape[-2] - rows
            held[..., :left, :] = held[..., rows:, :]
            held[..., left:, :] = 0
        return strip_KHW


def places(length: int, window: int) -> Iterator[slice]:
    """Places of windows along one axis; a single one where the image is no longer than a window."""
    if length <= window:
        yield slice(0, length)
        return
    last = count_places(length, window) - 1
    for index in range(last + 1):
        start = round(index * (length - window) / last)
        yield slice(start, start + window)


def count_places(length: int, window: int) -> int:
    """Number of windows that `places` gives."""
    stride = max(1, int(window * (1 - LEAST_OVERLAP)))
    return 1 + max(0, -(-(length - window) // stride))


def _tent(place: slice) -> Figures:
    """Weights that rise from the edges of a window to its middle, never zero."""
    length = place.stop - place.start
    inward = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.asarray(inward / length, dtype=np.float32)
