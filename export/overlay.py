"""A mask as people are shown it: the image, with each class tinted in its colour."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.bands import as_rgb
from export.images import U8

OPACITY = 0.5


def overlay(image_HWC: U8, mask_HW: U8, colours: Sequence[tuple[int, int, int]]) -> U8:
    """RGB HWC of the image under the colours of the classes in `mask_HW`."""
    rgb = as_rgb(image_HWC).astype(np.float32)
    painted: NDArray[np.float32] = np.asarray(colours, dtype=np.float32)[mask_HW]
    return np.asarray((1 - OPACITY) * rgb + OPACITY * painted, dtype=np.uint8)
