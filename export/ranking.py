"""How well a class's probability ranks the pixels: ROC-AUC over a split, void left out.

The area under the curve is the chance that a pixel of the class has a higher probability than one of another class,
ties counting half. Probabilities are kept as a histogram of their log-odds, so that memory does not grow with the
split: pixels within a bin count as equal. K classes, H height, W width; 255 is void in a truth mask.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.errors import ShapeError
from export.images import U8
from export.scoring import VOID

BINS = 65536
LIMIT = 20.0
"""Log-odds beyond it, either way, count as equal; float32 cannot tell probabilities nearer to 1 apart."""


class RankingScore:
    """Counts over any number of images."""

    def __init__(self) -> None:
        self._counts: list[NDArray[np.int64]] = []
        """For each class [2, BINS]: pixels of other classes, and its own."""

    def update(self, truth_HW: U8, probabilities_KHW: NDArray[np.float32]) -> None:
        """Count one image.

        Raises ShapeError when the sizes differ.
        """
        self._counts = self._counts or [np.zeros((2, BINS), dtype=np.int64) for _ in probabilities_KHW]
        if probabilities_KHW.shape != (len(self._counts), *truth_HW.shape):
            raise ShapeError(f"truth has shape {truth_HW.shape}, probabilities {probabilities_KHW.shape}")
        counted = truth_HW != VOID
        truth = truth_HW[counted]
        for label in range(len(self._counts)):
            p = probabilities_KHW[label][counted].astype(np.float64)
            with np.errstate(divide="ignore"):
                odds = np.log(p) - np.log1p(-p)
            place = ((odds.clip(-LIMIT, LIMIT) / LIMIT + 1) / 2 * (BINS - 1)).round().astype(np.int64)
            both = np.bincount(place + BINS * (truth == label), minlength=2 * BINS)
            self._counts[label] += both.reshape(2, BINS)

    def auc_per_class(self, classes: Sequence[str]) -> dict[str, float | None]:
        """None for a class that all pixels belong to, or none."""
        return {name: _auc(*counts) for name, counts in zip(classes, self._counts, strict=True)}

    def auc(self, classes: Sequence[str]) -> float | None:
        """Mean over the classes that have a figure; None when none has."""
        figures = [figure for figure in self.auc_per_class(classes).values() if figure is not None]
        return sum(figures) / len(figures) if figures else None


def _auc(others: NDArray[np.int64], own: NDArray[np.int64]) -> float | None:
    if not others.sum() or not own.sum():
        return None
    lower = others.cumsum() - others
    pairs = (own * (lower + others / 2)).sum()
    return float(pairs / (float(own.sum()) * float(others.sum())))
