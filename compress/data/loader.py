"""The batches that training and validation draw from a dataset.

N batch, C channels, H height, W width. Arrays are uint8; void in a mask is 255.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data import rare
from compress.data.cache import DecodedImages, Pair
from compress.data.crop import AS_IT_IS, Window, Zoom, resample
from compress.data.evaluation import EvaluationImages, nothing_counts
from compress.data.folder import Dataset, Sample
from export.images import PAD_VALUE, U8, Geometry, padded_size
from export.scoring import VOID

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """One step's worth of training data."""

    names: tuple[str, ...]
    images_NCHW: Tensor
    """uint8"""
    masks_NHW: Tensor
    """uint8, 255 is void"""
    seed_augmentation: int
    seed_network: int
    """For its dropout."""


class TrainingImages:
    """The training split; batches are windows of its images, drawn anew each epoch.

    The order of an epoch depends on the seed and its number alone, the windows of a batch on these and its place in the
    epoch: an epoch that is resumed in the middle goes on with exactly the batches that it would have had.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: tuple[int, int] | None,
        crop: tuple[int, int] | None,
        multiple: int,
        cache_gb: float = math.inf,
        rare_crops: float = 0.0,
        rare_images: float = 0.0,
        device: torch.device = CPU,
        on_image: Callable[[], None] = lambda: None,
    ) -> None:
        """Decoded images are kept up to `cache_gb`, on `device` where it has room; see `DecodedImages`. `rare_crops`
        and `rare_images` are the recipe's.

        Raises DatasetError when every mask is void everywhere.
        """
        self.crop = crop
        self.classes = dataset.classes
        self._multiple = multiple
        self._device = device
        samples = dataset.split("train")
        self._names = [sample.name for sample in samples]
        self.decoded = DecodedImages(
            dataset, samples, size=size, budget_bytes=cache_gb * 1e9, device=device, on_image=on_image
        )
        if not any((mask_HW != VOID).any() for mask_HW in self.decoded.masks()):
            raise nothing_counts(dataset, "train")
        self._rare_crops = rare_crops
        self._repeats = self._repeats_of(rare_images) if rare_images > 0 else None

    def __len__(self) -> int:
        return len(self._names)

    def batches(self, batch_size: int) -> int:
        """Steps in an epoch; images that do not fill a batch wait for the next epoch's shuffle."""
        return max(1, len(self) // batch_size)

    def class_pixels(self, classes: int) -> NDArray[np.int64]:
        """Pixels [K] of each class in the masks, void left out."""
        counts = np.zeros(classes, dtype=np.int64)
        for mask_HW in self.decoded.masks():
            counts += torch.bincount(mask_HW.flatten(), minlength=VOID + 1)[:classes].cpu().numpy()
        return counts

    def epoch(
        self, number: int, batch_size: int, *, seed: int = 0, first: int = 0, zoom: Zoom = AS_IT_IS
    ) -> Iterator[Batch]:
        """The batches of an epoch from `first` on: every image once, or more often the rarer its classes. Crops are
        magnified by a factor in the range `zoom`.

        Raises ImageError or DatasetError when a file that is not kept can no longer be read.
        """
        rng = np.random.default_rng([seed, number])
        order = rng.permutation(len(self)) if self._repeats is None else rare.order(rng, self._repeats)
        steps = range(first, self.batches(batch_size))
        groups = [order[step * batch_size : (step + 1) * batch_size].tolist() for step in steps]
        for step, group, pairs in zip(steps, groups, self.decoded.in_turn(groups), strict=True):
            # Counted from 1: numpy's seeds [a, b] and [a, b, 0] are the same.
            rng = np.random.default_rng([seed, number, 1 + step])
            windows = [Window.draw(rng, pair.size, self.crop, zoom, self._place(rng, pair)) for pair in pairs]
            images, masks = self._shown(pairs, windows)
            seeds = int(rng.integers(2**62)), int(rng.integers(2**62))
            yield Batch(tuple(self._names[index] for index in group), images.permute(0, 3, 1, 2), masks, *seeds)

    def drawn(self, count: int, batch_size: int, *, seed: int = 0) -> Iterator[Batch]:
        """`count` batches, epoch after epoch, without zoom."""
        epochs = (batch for number in itertools.count() for batch in self.epoch(number, batch_size, seed=seed))
        return itertools.islice(epochs, count)

    def _repeats_of(self, threshold: float) -> NDArray[np.float64]:
        return rare.repeats([rare.classes_in(mask_HW) for mask_HW in self.decoded.masks()], threshold)

    def _place(self, rng: np.random.Generator, pair: Pair) -> tuple[int, int] | None:
        """The pixel around which a crop is taken; None: anywhere."""
        if self.crop is None or self._rare_crops == 0 or rng.random() >= self._rare_crops:
            return None
        return rare.place(rng, pair.mask_HW)

    def _shown(self, pairs: Sequence[Pair], windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Images NHWC and masks NHW, all of one size that the model takes, on the device."""
        places = [(window.rows.pixels, window.columns.pixels) for window in windows]
        images = [pair.image_HWC[place] for pair, place in zip(pairs, places, strict=True)]
        masks = [pair.mask_HW[place] for pair, place in zip(pairs, places, strict=True)]
        tallest, widest = (max(window.frame[axis] for window in windows) for axis in (0, 1))
        size = padded_size(tallest, widest, self._multiple)
        if not any(window.is_resampled for window in windows):
            return self._stacked(images, size, PAD_VALUE), self._stacked(masks, size, VOID)
        taken = max(len(mask) for mask in masks), max(mask.shape[1] for mask in masks)
        return resample(self._stacked(images, taken, PAD_VALUE), self._stacked(masks, taken, VOID), windows, size)

    def _stacked(self, arrays: Sequence[Tensor], size: tuple[int, int], fill: int) -> Tensor:
        """One tensor, padded at the right and the bottom; built where the images are kept, then moved to the device."""
        lies_on = self.decoded.device
        stack = torch.full(
            (len(arrays), *size, *arrays[0].shape[2:]),
            fill,
            dtype=torch.uint8,
            device=lies_on,
            pin_memory=lies_on.type == "cpu" and self._device.type == "cuda",
        )
        for into, array in zip(stack, arrays, strict=True):
            into[: array.shape[0], : array.shape[1]].copy_(array, non_blocking=True)
        return stack.to(self._device, non_blocking=True)


@dataclass(frozen=True)
class _Prepared:
    name: str
    fitted: U8
    geometry: Geometry
    truth: U8

    @property
    def nbytes(self) -> int:
        return self.fitted.nbytes + self.truth.nbytes


_BATCH_PIXELS = 8 * 512 * 512
"""Pixels that are validated at a time. Whole images need more memory than crops, and a CPU that has too little raises
nothing: the process is killed."""


class ValidationImages:
    """The validation split, batched by padded size and kept in memory within a budget, so that an epoch's validation is
    short."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: tuple[int, int] | None,
        multiple: int,
        cache_gb: float = math.inf,
        samples: Sequence[Sample] | None = None,
    ) -> None:
        """`samples` of the split; None: all. Images beyond `cache_gb` are read whenever they are needed.

        Raises DatasetError when every mask is void everywhere.
        """
        self.classes = dataset.classes
        self._images = EvaluationImages(dataset, "val", samples)
        self._size = size
        self.multiple = multiple
        self._kept: list[_Prepared] = []
        self._by_shape: dict[tuple[int, int, int], list[int]] = {}
        used, counts = 0, False
        for index in range(len(self._images)):
            item = self._read(index)
            height, width, channels = item.fitted.shape
            self._by_shape.setdefault((height, width, channels), []).append(index)
            counts = counts or bool((item.truth != VOID).any())
            used += item.nbytes
            if used <= cache_gb * 1e9:
                self._kept.append(item)
        if not counts:
            raise nothing_counts(dataset, "val")

    def __len__(self) -> int:
        return len(self._images)

    def __str__(self) -> str:
        beyond = "" if len(self._kept) == len(self) else "; the others are read from disk in every validation"
        return f"{len(self._kept)} of {len(self)} images are kept decoded in memory{beyond}"

    def predictions(
        self, masks_of: Callable[[Tensor], NDArray[np.uint8]], *, batch_size: int = 8
    ) -> Iterator[tuple[str, U8, U8]]:
        """(name, truth HW, prediction HW) of every image; `masks_of` takes uint8 NCHW and gives uint8 NHW.

        Raises ImageError or DatasetError when a file that is not kept can no longer be read.
        """
        for (height, width, _), indices in self._by_shape.items():
            count = max(1, min(batch_size, _BATCH_PIXELS // (height * width)))
            for start in range(0, len(indices), count):
                chunk = [
                    self._kept[index] if index < len(self._kept) else self._read(index)
                    for index in indices[start : start + count]
                ]
                images = torch.from_numpy(np.stack([item.fitted for item in chunk])).permute(0, 3, 1, 2)
                for item, mask in zip(chunk, masks_of(images), strict=True):
                    yield item.name, item.truth, item.geometry.restore(mask)

    def _read(self, index: int) -> _Prepared:
        name, image, truth = self._images[index]
        geometry = Geometry.plan(*image.shape[:2], size=self._size, multiple=self.multiple)
        return _Prepared(name, geometry.fit(image), geometry, truth)
