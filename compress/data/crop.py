"""What training sees of an image: a window of its pixels, brought to the size of a crop.

Zoom is part of taking the crop. Zooming a crop afterwards would show void around it where the image goes on.

N batch, C channels, H height, W width; images and masks are uint8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export.images import PAD_VALUE
from export.scoring import VOID

Zoom = tuple[float, float]
AS_IT_IS: Zoom = (1.0, 1.0)


@dataclass(frozen=True)
class Side:
    """One axis of a window: `length` pixels of the image from `start`, shown as `shown` pixels of a frame.

    The rest of the frame, below or to the right, is void.
    """

    start: float
    length: float
    shown: int
    frame: int
    full: int
    """Pixels of the whole image."""

    @classmethod
    def whole(cls, full: int) -> "Side":
        return cls(0, full, full, full, full)

    @classmethod
    def draw(cls, rng: np.random.Generator, full: int, crop: int, zoom: float, around: int | None = None) -> "Side":
        """Draw a place with `rng`, one that shows the pixel `around` if that is given. A zoomed image smaller than its
        crop is shown whole."""
        shown = min(crop, max(1, round(full * zoom)))
        frame = min(crop, max(full, shown))
        length = min(full, shown / zoom) if shown == crop else full
        first, last = 0.0, full - length
        if around is not None:
            first, last = max(first, around + 1 - length), min(last, around)
        if zoom == 1:
            return cls(int(rng.integers(int(first), int(last) + 1)), shown, shown, frame, full)
        return cls(rng.uniform(first, max(first, last)), length, shown, frame, full)

    @property
    def is_resampled(self) -> bool:
        return self.length != self.shown

    @property
    def pixels(self) -> slice:
        """The image's pixels that are needed to show the window, with neighbours to interpolate with."""
        margin = 1 if self.is_resampled else 0
        first, last = int(np.floor(self.start)) - margin, int(np.ceil(self.start + self.length)) + margin
        return slice(max(0, first), min(self.full, last))

    def places(self) -> NDArray[np.float64]:
        """Centres of the frame's pixels, as indices into `pixels`; those of void ones may lie anywhere in it."""
        step = self.length / self.shown
        centres = self.start + (np.arange(self.frame) + 0.5) * step - 0.5
        places: NDArray[np.float64] = centres - self.pixels.start
        return places.clip(0, self.pixels.stop - self.pixels.start - 1)


@dataclass(frozen=True)
class Window:
    """Rows and columns of one image."""

    rows: Side
    columns: Side

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        size: tuple[int, int],
        crop: tuple[int, int] | None,
        zoom: Zoom,
        around: tuple[int, int] | None = None,
    ) -> "Window":
        """Draw a crop (height, width) of an image of `size`, magnified by a factor in the range `zoom`; None: the whole
        image.

        `around` is a pixel (row, column) that the window has to show.
        """
        if crop is None:
            return cls(Side.whole(size[0]), Side.whole(size[1]))
        factor = 1.0 if zoom == AS_IT_IS else rng.uniform(*zoom)
        row, column = (None, None) if around is None else around
        return cls(Side.draw(rng, size[0], crop[0], factor, row), Side.draw(rng, size[1], crop[1], factor, column))

    @property
    def frame(self) -> tuple[int, int]:
        """(height, width) of the frame that it needs."""
        return self.rows.frame, self.columns.frame

    @property
    def is_resampled(self) -> bool:
        return self.rows.is_resampled or self.columns.is_resampled


def resample(
    images_NHWC: Tensor, masks_NHW: Tensor, windows: Sequence[Window], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Show each window in a frame of `size`: images bilinear, masks nearest, padding and void beyond the window.

    Image n has to begin with the `pixels` of `windows[n]`; what follows them is not used.
    """
    device = images_NHWC.device
    y_NH, y_there = _axis([window.rows for window in windows], size[0])
    x_NW, x_there = _axis([window.columns for window in windows], size[1])

    def moved(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    there_NHW = moved(y_there)[:, :, None] & moved(x_there)[:, None, :]
    # From -1 at the centre of the first pixel to 1 at that of the last, which is what align_corners means. Only the
    # axes are made on the CPU: the grid of a batch has a thousand times as many numbers.
    height, width = images_NHWC.shape[1:3]
    rows_NH, columns_NW = (
        moved((places * (2 / max(1, length - 1)) - 1).astype(np.float32))
        for places, length in ((y_NH, height), (x_NW, width))
    )
    shape = (len(windows), *size)
    grid = torch.stack([columns_NW[:, None, :].expand(shape), rows_NH[:, :, None].expand(shape)], dim=-1)
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).float()
    shown_NCHW = F.grid_sample(images_NCHW, grid, padding_mode="border", align_corners=True).round().to(torch.uint8)

    # Indexed by whole numbers, not a grid of floats: nearest then means the same pixel on every device.
    y, x = (moved(_nearest(places)) for places in (y_NH, x_NW))
    labels_NHW = masks_NHW[torch.arange(len(y), device=device)[:, None, None], y[:, :, None], x[:, None, :]]
    return (
        torch.where(there_NHW[:, None], shown_NCHW, PAD_VALUE).permute(0, 2, 3, 1),
        torch.where(there_NHW, labels_NHW, VOID),
    )


def _axis(sides: Sequence[Side], length: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Places [N, length] in each image, and whether the image is shown there."""
    places = np.zeros((len(sides), length))
    for row, side in zip(places, sides, strict=True):
        row[: side.frame] = side.places()
    shown = np.array([side.shown for side in sides])
    return places, np.arange(length) < shown[:, None]


def _nearest(places: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(places + 0.5).astype(np.int64)
