"""How well the edges of classes are found: boundary F1 over a split, void ignored.

An edge pixel has a neighbour (above, below, left, right) of another class. The precision of a class is the share of
its edge pixels in the answer that lie near one of its edge pixels in the truth; recall is the reverse. As for mIoU,
pixels are counted over the whole split; a class with no edge in either has no figure.

Source: Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?", with its tolerance of 0.75 %
of the image's diagonal. K classes, H height, W width; 255 is void in a truth mask.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.errors import ShapeError
from export.images import U8
from export.scoring import VOID

Bools = NDArray[np.bool_]
TOLERANCE = 0.0075
"""Share of the diagonal."""


class BoundaryScore:
    """Counts over any number of images, by class: edge pixels of answers and truths, and those near the other's."""

    def __init__(self) -> None:
        self._edges: tuple[Counter[int], Counter[int]] = Counter(), Counter()
        self._hits: tuple[Counter[int], Counter[int]] = Counter(), Counter()

    def update(self, truth_HW: U8, prediction_HW: U8) -> None:
        """Count one image. Void in the truth makes no edge in either mask, neither within it nor beside it.

        Raises ShapeError when the masks differ in size.
        """
        if truth_HW.shape != prediction_HW.shape:
            raise ShapeError(f"truth has shape {truth_HW.shape}, prediction {prediction_HW.shape}")
        answer_HW = np.where(truth_HW == VOID, VOID, prediction_HW)
        radius = tolerance(truth_HW.shape[0], truth_HW.shape[1])
        truth_edges, answer_edges = edges_of(truth_HW), edges_of(answer_HW)
        for label in np.union1d(truth_HW[truth_edges], answer_HW[answer_edges]).tolist():
            truth, answer = truth_edges & (truth_HW == label), answer_edges & (answer_HW == label)
            for side, (mine, theirs) in enumerate(((answer, truth), (truth, answer))):
                self._edges[side][label] += int(mine.sum())
                if mine.any() and theirs.any():
                    self._hits[side][label] += int((mine & near(theirs, radius)).sum())

    def f1_per_class(self, classes: Sequence[str]) -> dict[str, float | None]:
        """Harmonic mean of precision and recall, 0 where one side has no edge; None where neither has."""
        return {name: self._f1(label) for label, name in enumerate(classes)}

    def f1(self, classes: Sequence[str]) -> float | None:
        """Mean over the classes that have a figure; None when none has."""
        figures = [figure for figure in self.f1_per_class(classes).values() if figure is not None]
        return sum(figures) / len(figures) if figures else None

    def _f1(self, label: int) -> float | None:
        edges = [side[label] for side in self._edges]
        if not any(edges):
            return None
        precision, recall = (hits[label] / max(1, all_of) for hits, all_of in zip(self._hits, edges, strict=True))
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def tolerance(height: int, width: int) -> int:
    """How many pixels two edges may be apart, at least 1."""
    return max(1, round(TOLERANCE * math.hypot(height, width)))


def edges_of(mask_HW: U8) -> Bools:
    """Pixels beside one of another class; void is no class."""
    edge_HW: Bools = np.zeros(mask_HW.shape, dtype=np.bool_)
    for axis in (0, 1):
        first, second = (
            mask_HW[tuple(part if other == axis else slice(None) for other in (0, 1))]
            for part in (slice(None, -1), slice(1, None))
        )
        differ = (first != second) & (first != VOID) & (second != VOID)
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (0, 1), (1, 0)
        edge_HW |= np.pad(differ, before) | np.pad(differ, after)
    return edge_HW


def near(points_HW: Bools, radius: int) -> Bools:
    """Pixels at most `radius` from one of `points_HW`: a disc drawn around each.

    The disc is drawn row by row; each row is a difference of two cumulative sums, however wide it is.
    """
    height, width = points_HW.shape
    padded = np.pad(points_HW, ((radius, radius), (radius + 1, radius)))
    sums = padded.cumsum(axis=1, dtype=np.int32)
    found: Bools = np.zeros((height, width), dtype=np.bool_)
    for down in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - down**2)
        rows = sums[radius + down : radius + down + height]
        right, left = radius + 1 + reach, radius - reach
        found |= rows[:, right : right + width] > rows[:, left : left + width]
    return found
