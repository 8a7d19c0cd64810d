"""More than one look at an image: mirrored, and window by window. Both average probabilities and take more runs.

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
"""Of neighbouring windows, over their side."""


@dataclass(frozen=True)
class Refinement:
    """How an image is looked at; by default once, as a whole."""

    mirrored: bool = False
    """As it is and mirrored left to right."""
    window: tuple[int, int] | None = None
    """(height, width) of what the model sees at once: for images that are larger than those it was trained on, or than
    memory."""

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
    """Windows that overlap by `LEAST_OVERLAP` at least, the last ones flush with the image's edge. Where they overlap,
    each counts the more the further inside of it a pixel lies: at its edge a window knows least."""

    def whole(image_HWC: U8) -> Figures:
        height, width = image_HWC.shape[:2]
        sums: Figures | None = None
        weights_HW = np.zeros((height, width), dtype=np.float32)
        for rows in places(height, window[0]):
            for columns in places(width, window[1]):
                found_KHW = probabilities(np.ascontiguousarray(image_HWC[rows, columns]))
                weight_HW = _tent(rows)[:, None] * _tent(columns)[None, :]
                if sums is None:
                    sums = np.zeros((len(found_KHW), height, width), dtype=np.float32)
                sums[:, rows, columns] += found_KHW * weight_HW
                weights_HW[rows, columns] += weight_HW
        if sums is None:
            raise ValueError("an image without pixels")
        return np.asarray(sums / weights_HW, dtype=np.float32)

    return whole


def places(length: int, window: int) -> Iterator[slice]:
    """Of windows along one axis; one alone where the image is no longer than it."""
    if length <= window:
        yield slice(0, length)
        return
    stride = max(1, int(window * (1 - LEAST_OVERLAP)))
    count = -(-(length - window) // stride)
    for index in range(count + 1):
        start = round(index * (length - window) / count)
        yield slice(start, start + window)


def _tent(place: slice) -> Figures:
    """From the edges of a window up to its middle, never zero."""
    length = place.stop - place.start
    inward = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.asarray(inward / length, dtype=np.float32)
