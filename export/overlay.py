"""A mask as people are shown it: the image, with each class tinted in its colour."""

from collections.abc import Sequence

import numpy as np

from export.bands import as_rgb
from export.images import U8

OPACITY = 0.5
_ROWS = 64


def overlay(image_HWC: U8, mask_HW: U8, colours: Sequence[tuple[int, int, int]]) -> U8:
    """RGB HWC of the image under the colours of the classes in `mask_HW`."""
    palette = np.asarray(colours, dtype=np.float32)
    painted = as_rgb(image_HWC).copy()
    # In strips: floats of a whole image take twelve bytes for each of its pixels, several times.
    for top in range(0, len(painted), _ROWS):
        rows = slice(top, top + _ROWS)
        painted[rows] = (1 - OPACITY) * painted[rows].astype(np.float32) + OPACITY * palette[mask_HW[rows]]
    return painted
