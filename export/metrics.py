"""What a confusion matrix says about a model: IoU, Dice, precision, recall, accuracy.

One rule for missing classes, the same as in torchmetrics: a class absent from truth and prediction has no figure (NaN,
in JSON null) and is left out of means; a class in only one of the two is all wrong and has 0.

K classes. Counts [..., K, K] are pixels by truth (rows) and prediction (columns), void left out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Figures = NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """Every figure of one confusion matrix."""

    classes: tuple[str, ...]
    confusion: Counts
    """[K, K]"""

    @property
    def miou(self) -> float:
        """NaN when no pixel counts."""
        return float(mean_iou(self.confusion))

    def as_tree(self) -> dict[str, Any]:
        """Plain values for JSON: figures by class, and their means over the classes that occur.

        `f1` is the mean of Dice: of a single class, Dice and F1 are two names of one number.
        """
        iou, dice = iou_of(self.confusion), dice_of(self.confusion)
        precision, recall = precision_of(self.confusion), recall_of(self.confusion)
        return {
            "miou": _or_none(_mean(iou)),
            "accuracy": _or_none(accuracy_of(self.confusion)),
            "precision": _or_none(_mean(precision)),
            "recall": _or_none(_mean(recall)),
            "f1": _or_none(_mean(dice)),
            "iou_per_class": self.by_class(iou),
            "dice_per_class": self.by_class(dice),
            "precision_per_class": self.by_class(precision),
            "recall_per_class": self.by_class(recall),
            "confusion": self.confusion.tolist(),
        }

    def by_class(self, figures_K: Figures) -> dict[str, float | None]:
        """None for a class that has no figure."""
        return {name: _or_none(figure) for name, figure in zip(self.classes, figures_K, strict=True)}


def iou_of(counts: Counts) -> Figures:
    """Intersection over union [..., K]."""
    hits, truth, prediction = _pixels(counts)
    return _per_class(hits, truth + prediction - hits, counts)


def dice_of(counts: Counts) -> Figures:
    """Dice [..., K], which is F1: the harmonic mean of precision and recall."""
    hits, truth, prediction = _pixels(counts)
    return _per_class(2 * hits, truth + prediction, counts)


def precision_of(counts: Counts) -> Figures:
    """Share [..., K] of the pixels predicted as a class that belong to it."""
    hits, _, prediction = _pixels(counts)
    return _per_class(hits, prediction, counts)


def recall_of(counts: Counts) -> Figures:
    """Share [..., K] of a class's pixels that were predicted as it."""
    hits, truth, _ = _pixels(counts)
    return _per_class(hits, truth, counts)


def accuracy_of(counts: Counts) -> Figures:
    """Share [...] of the pixels whose class is right; NaN when no pixel counts."""
    hits, truth, _ = _pixels(counts)
    return _ratio(hits.sum(axis=-1), truth.sum(axis=-1), otherwise=np.nan)


def mean_iou(counts: Counts) -> Figures:
    """mIoU [...], classes that occur nowhere left out; NaN when none occurs."""
    return _mean(iou_of(counts))


def _pixels(counts: Counts) -> tuple[Counts, Counts, Counts]:
    """Pixels of each class [..., K]: predicted correctly, in the truth, in the prediction."""
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)


def _per_class(numerator: Counts, denominator: Counts, counts: Counts) -> Figures:
    """Ratio of the two, by the rule for missing classes."""
    _, truth, prediction = _pixels(counts)
    return np.where(truth + prediction > 0, _ratio(numerator, denominator, otherwise=0.0), np.nan)


def _ratio(numerator: Counts | Figures, denominator: Counts, *, otherwise: float) -> Figures:
    """Ratio of the two; `otherwise` where the denominator is zero."""
    ratio: Figures = np.full(numerator.shape, otherwise, dtype=np.float64)
    return np.divide(numerator, denominator, out=ratio, where=denominator > 0)


def _mean(figures: Figures) -> Figures:
    """Mean [...] of [..., K] over the classes that have a figure."""
    there = ~np.isnan(figures)
    return _ratio(np.where(there, figures, 0.0).sum(axis=-1), there.sum(axis=-1), otherwise=np.nan)


def _or_none(figure: Figures | float) -> float | None:
    return None if np.isnan(figure) else float(figure)
