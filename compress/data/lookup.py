"""The floor for every model: what the grey value alone says about a pixel's class.

A model that does not beat the best look-up table has learnt brightness, not shape.

V grey values (256), K classes, H height, W width.
"""

import numpy as np
from numpy.typing import NDArray

from compress.data.folder import Dataset
from export.errors import DatasetError
from export.images import decode
from export.metrics import mean_iou
from export.scoring import VOID, ConfusionMatrix

_GREYS = 256


def lookup_table_miou(dataset: Dataset) -> float:
    """mIoU on test of the grey-value look-up table that was fitted on train.

    Colour counts as luminance, and a file with several pages as its first page.

    Raises ImageError and DatasetError when a file cannot be read.
    """
    table_V = fit_lookup_table(grey_statistics(dataset))
    matrix = ConfusionMatrix(len(dataset.classes))
    for sample in dataset.test:
        matrix.update(dataset.read_mask(sample), table_V[decode(sample.image, 1)[..., 0]])
    return matrix.miou


def grey_statistics(dataset: Dataset) -> NDArray[np.int64]:
    """Pixels [V, K] of train by grey value and class, void left out."""
    classes = len(dataset.classes)
    counts_VK = np.zeros((_GREYS, classes), dtype=np.int64)
    for sample in dataset.train:
        grey, truth = decode(sample.image, 1)[..., 0], dataset.read_mask(sample)
        if grey.shape != truth.shape:
            raise DatasetError(dataset.path, [f"{sample.mask}: mask and image differ in size; run the data check"])
        counted = truth != VOID
        pairs = grey[counted].astype(np.int64) * classes + truth[counted]
        counts_VK += np.bincount(pairs, minlength=_GREYS * classes).reshape(_GREYS, classes)
    return counts_VK


def fit_lookup_table(counts_VK: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The class [V] of each grey value: the majority's, then improved value by value while mIoU rises."""
    values, classes = counts_VK.shape
    table_V: NDArray[np.uint8] = counts_VK.argmax(axis=1).astype(np.uint8)
    if not counts_VK.any():
        return table_V
    confusion_KK = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion_KK.T, table_V, counts_VK)
    best = mean_iou(confusion_KK)
    improved = True
    while improved:
        improved = False
        for value in range(values):
            without_KK = confusion_KK.copy()
            without_KK[:, table_V[value]] -= counts_VK[value]
            # One confusion matrix for each class that the value could be given.
            tried_KKK = np.repeat(without_KK[None], classes, axis=0)
            tried_KKK[np.arange(classes), :, np.arange(classes)] += counts_VK[value]
            mious_K = mean_iou(tried_KKK)
            choice = int(np.nanargmax(mious_K))
            if mious_K[choice] > best:
                table_V[value], confusion_KK, best, improved = choice, tried_KKK[choice], mious_K[choice], True
    return table_V
