"""Scoring a split: one int64 confusion matrix, void ignored, with a bootstrap interval over images.

K classes, H height, W width; 255 is void in a truth mask.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.errors import ShapeError
from export.images import U8
from export.metrics import Metrics, iou_of, mean_iou

VOID = 255
"""Void inside the program, whatever a dataset calls it: counted nowhere."""

_RESAMPLES = 1000
_AT_ONCE = 2_000_000
"""Counts of drawn matrices that are held at a time."""


class ConfusionMatrix:
    """Pixels by truth (rows) and prediction (columns), int64, over any number of images."""

    def __init__(self, classes: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)

    def update(self, truth_HW: U8, prediction_HW: U8) -> None:
        """Count one image; pixels whose truth is void are left out.

        Raises ShapeError when the masks differ in size or hold values that are no class.
        """
        if truth_HW.shape != prediction_HW.shape:
            raise ShapeError(f"truth has shape {truth_HW.shape}, prediction {prediction_HW.shape}")
        classes = len(self.counts)
        counted = truth_HW != VOID
        truth, prediction = truth_HW[counted].astype(np.int64), prediction_HW[counted].astype(np.int64)
        if truth.size and max(truth.max(), prediction.max()) >= classes:
            raise ShapeError(f"a mask holds values beyond the classes 0..{classes - 1}")
        pairs = np.bincount(truth * classes + prediction, minlength=classes * classes)
        self.counts += pairs.reshape(classes, classes)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur; NaN when none does."""
        return float(mean_iou(self.counts))


@dataclass(frozen=True)
class Score:
    """How a model did on a split: one confusion matrix for each image, so that intervals can be bootstrapped."""

    classes: tuple[str, ...]
    images: tuple[str, ...]
    counts: NDArray[np.int64]
    """[images, K, K]"""

    @property
    def images_counted(self) -> int:
        """How many images are not void everywhere."""
        return int(self.counts.any(axis=(1, 2)).sum())

    @property
    def metrics(self) -> Metrics:
        """Metrics of the whole split."""
        return Metrics(self.classes, self.counts.sum(axis=0))

    @property
    def miou(self) -> float:
        return self.metrics.miou

    @property
    def commonest(self) -> tuple[str, float]:
        """The most common class of the truth, and the mIoU of answering it everywhere: what needs no model."""
        truth_K = self.metrics.confusion.sum(axis=1)
        counts = np.zeros_like(self.metrics.confusion)
        counts[:, truth_K.argmax()] = truth_K
        return self.classes[truth_K.argmax()], float(mean_iou(counts))

    @property
    def iou_per_class(self) -> dict[str, float | None]:
        """None for a class that occurs neither in truth nor in prediction."""
        return self.metrics.by_class(iou_of(self.metrics.confusion))

    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap of mIoU over images. Source: Efron & Tibshirani 1993, chapter 13."""
        low, high = np.nanpercentile(self._resampled(), [2.5, 97.5])
        return float(low), float(high)

    def interval_per_class(self) -> dict[str, tuple[float, float] | None]:
        """95 % percentile bootstrap of each IoU over images; None for a class that never occurs."""
        iou_K = np.concatenate([iou_of(drawn) for drawn in self._draws()])
        known = [column[~np.isnan(column)] for column in iou_K.T]
        bounds = [None if column.size == 0 else np.percentile(column, [2.5, 97.5]) for column in known]
        pairs = [None if pair is None else (float(pair[0]), float(pair[1])) for pair in bounds]
        return dict(zip(self.classes, pairs, strict=True))

    def drop_interval(self, child: "Score") -> tuple[float, float]:
        """95 % paired bootstrap of mIoU(self) - mIoU(child): both drawn with the same images.

        Raises ShapeError when the two were not scored on the same images.
        """
        if self.images != child.images:
            raise ShapeError("a drop compares scores of the same images")
        drops = self._resampled() - child._resampled()
        low, high = np.nanpercentile(drops, [2.5, 97.5])
        return float(low), float(high)

    def _resampled(self) -> NDArray[np.float64]:
        return np.concatenate([mean_iou(drawn) for drawn in self._draws()])

    def _draws(self) -> Iterator[NDArray[np.int64]]:
        """Confusion matrices [_, K, K] of as many images as are counted, drawn with replacement; some at a time."""
        counts, classes = self.counts[self.counts.any(axis=(1, 2))], len(self.classes)
        count = max(len(counts), 1)
        draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
        # Whole numbers below 2**53 are exact in float64, and numpy has fast products of matrices only for floats.
        counts_NKK = counts.reshape(-1, classes * classes).astype(np.float64)
        for some in np.array_split(draws[:, : len(counts)], max(1, _RESAMPLES * classes**2 // _AT_ONCE)):
            drawn = some.astype(np.float64) @ counts_NKK
            yield drawn.astype(np.int64).reshape(-1, classes, classes)


def score(
    segment: Callable[[U8], U8],
    samples: Iterable[tuple[str, U8, U8]],
    classes: tuple[str, ...],
    *,
    on_image: Callable[[], None] = lambda: None,
    on_answer: Callable[[U8, U8], None] = lambda _, __: None,
) -> Score:
    """Run `segment` (image HWC to mask HW) over (name, image, truth) and count.

    `on_image` is called after each image, for a progress bar; `on_answer` gets its truth and its answer, for figures
    that a confusion matrix does not hold.
    """
    names, counts = [], []
    for name, image, truth in samples:
        matrix = ConfusionMatrix(len(classes))
        answer = segment(image)
        matrix.update(truth, answer)
        on_answer(truth, answer)
        names.append(name)
        counts.append(matrix.counts)
        on_image()
    stacked = np.stack(counts) if counts else np.zeros((0, len(classes), len(classes)), dtype=np.int64)
    return Score(classes, tuple(names), stacked)
