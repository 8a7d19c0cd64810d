"""Decoded images, kept in memory, and the batches that training and validation draw from them.

N batch, C channels, H height, W width. Arrays are uint8; void in a mask is 255.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.evaluation import EvaluationImages, nothing_counts
from compress.data.folder import Dataset
from export.images import PAD_VALUE, U8, Geometry, resize_image, resize_mask
from export.scoring import VOID


@dataclass(frozen=True)
class Batch:
    """One step's worth of training data."""

    names: tuple[str, ...]
    images_NCHW: Tensor
    """uint8"""
    masks_NHW: Tensor
    """uint8, 255 is void"""


class TrainingImages:
    """The training split, decoded and resized once; batches are crops of it, drawn anew each epoch."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: tuple[int, int] | None,
        crop: tuple[int, int] | None,
        multiple: int,
        on_image: Callable[[], None] = lambda: None,
    ) -> None:
        self._crop = crop
        self._multiple = multiple
        self._names: list[str] = []
        self._pairs: list[tuple[U8, U8]] = []
        for sample in dataset.split("train"):
            image, mask = dataset.read_image(sample), dataset.read_mask(sample)
            if size is not None:
                image, mask = resize_image(image, size), resize_mask(mask, size)
            self._names.append(sample.name)
            self._pairs.append((image, mask))
            on_image()

    def __len__(self) -> int:
        return len(self._pairs)

    def batches(self, batch_size: int) -> int:
        """Steps in an epoch; images that do not fill a batch wait for the next epoch's shuffle."""
        return max(1, len(self) // batch_size)

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Every image once, in an order and with crops that `rng` alone decides."""
        order = rng.permutation(len(self))
        for start in range(self.batches(batch_size)):
            chosen = order[start * batch_size : (start + 1) * batch_size]
            pairs = [self._cropped(*self._pairs[int(i)], rng) for i in chosen]
            yield _collate([self._names[int(i)] for i in chosen], pairs, self._multiple)

    def _cropped(self, image: U8, mask: U8, rng: np.random.Generator) -> tuple[U8, U8]:
        if self._crop is None:
            return image, mask
        rows, columns = (min(side, full) for side, full in zip(self._crop, mask.shape, strict=True))
        top = int(rng.integers(mask.shape[0] - rows + 1))
        left = int(rng.integers(mask.shape[1] - columns + 1))
        window = np.s_[top : top + rows, left : left + columns]
        return image[window], mask[window]


@dataclass(frozen=True)
class _Prepared:
    name: str
    fitted: U8
    geometry: Geometry
    truth: U8


class ValidationImages:
    """The validation split in memory, batched by padded size, so that an epoch's validation is short."""

    def __init__(self, dataset: Dataset, *, size: tuple[int, int] | None, multiple: int) -> None:
        """Raises DatasetError when every mask is void everywhere."""
        self.classes = dataset.classes
        self._prepared = []
        for name, image, truth in EvaluationImages(dataset, "val"):
            geometry = Geometry.plan(*image.shape[:2], size=size, multiple=multiple)
            self._prepared.append(_Prepared(name, geometry.fit(image), geometry, truth))
        if all((item.truth == VOID).all() for item in self._prepared):
            raise nothing_counts(dataset, "val")

    @property
    def typical_size(self) -> tuple[int, int]:
        """Padded (height, width) of the first image: where latency is measured when nothing else is asked for."""
        return self._prepared[0].fitted.shape[:2]

    def predictions(
        self, masks_of: Callable[[Tensor], NDArray[np.uint8]], *, batch_size: int = 8
    ) -> Iterator[tuple[str, U8, U8]]:
        """(name, truth HW, prediction HW) of every image; `masks_of` takes uint8 NCHW and gives uint8 NHW."""
        by_shape: dict[tuple[int, ...], list[_Prepared]] = {}
        for item in self._prepared:
            by_shape.setdefault(item.fitted.shape, []).append(item)
        for items in by_shape.values():
            for start in range(0, len(items), batch_size):
                chunk = items[start : start + batch_size]
                images = torch.from_numpy(np.stack([item.fitted for item in chunk])).permute(0, 3, 1, 2)
                for item, mask in zip(chunk, masks_of(images), strict=True):
                    yield item.name, item.truth, item.geometry.restore(mask)


def _collate(names: Sequence[str], pairs: Sequence[tuple[U8, U8]], multiple: int) -> Batch:
    """Pad to one size that the model takes: images with 128, masks with void."""
    height = -(-max(mask.shape[0] for _, mask in pairs) // multiple) * multiple
    width = -(-max(mask.shape[1] for _, mask in pairs) // multiple) * multiple
    channels = pairs[0][0].shape[2]
    images = np.full((len(pairs), height, width, channels), PAD_VALUE, dtype=np.uint8)
    masks = np.full((len(pairs), height, width), VOID, dtype=np.uint8)
    for i, (image, mask) in enumerate(pairs):
        images[i, : mask.shape[0], : mask.shape[1]] = image
        masks[i, : mask.shape[0], : mask.shape[1]] = mask
    return Batch(tuple(names), torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks))
