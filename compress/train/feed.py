"""Batches as the network sees them: on its device, normalised, augmented.

N batch, C channels, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.checkpoint import normalised
from compress.data.augment import Augment
from compress.data.crop import AS_IT_IS
from compress.data.loader import TrainingImages
from compress.data.mixing import Second, cutmixed, mixed
from compress.settings.augment import AugmentSettings
from compress.settings.fit import FitSettings
from compress.train import own
from compress.train.clock import Clock
from compress.train.runtime import Runtime


@dataclass(frozen=True)
class Fed:
    """One step's worth."""

    names: tuple[str, ...]
    images_NCHW: Tensor
    """float32, in channels_last."""
    masks_NHW: Tensor
    """uint8, 255 is void"""
    seed: int
    """For what is random in the network."""
    second: Second | None = None
    """What MixUp has blended into the images."""


class Feed:
    """Draws batches from the training images; `clock` records how long that takes."""

    def __init__(
        self, images: TrainingImages, settings: FitSettings, augment: AugmentSettings, runtime: Runtime, clock: Clock
    ) -> None:
        self._images = images
        self._batch_size = settings.batch_size
        self._seed = settings.seed
        self._runtime = runtime
        self._clock = clock
        self._settings = augment
        self._own = None if augment.own is None else own.augmentation(augment.own, len(images.classes))
        self._zoom = AS_IT_IS if images.crop is None else augment.scale
        self._augment = Augment(augment if images.crop is None else augment.model_copy(update={"scale": AS_IT_IS}))

    @property
    def steps_an_epoch(self) -> int:
        return self._images.batches(self._batch_size)

    def epoch(self, number: int, first: int) -> Iterator[Fed]:
        """The batches of an epoch from the step `first` on; they do not depend on what came before them."""
        batches = self._images.epoch(number, self._batch_size, seed=self._seed, first=first, zoom=self._zoom)
        for _ in range(first, self.steps_an_epoch):
            with self._clock.part("data"):
                batch = next(batches)
                images = normalised(batch.images_NCHW.to(self._runtime.device, non_blocking=True))
                masks = batch.masks_NHW.to(self._runtime.device, non_blocking=True)
            with self._clock.part("augmentation"):
                self._runtime.seed(batch.seed_augmentation)
                images, masks = self._augment(images, masks)
                if self._own is not None:
                    images, masks = self._own(images, masks)
                images, masks = cutmixed(self._settings, images, masks)
                images, second = mixed(self._settings, images, masks)
                images = images.contiguous(memory_format=torch.channels_last)
            yield Fed(batch.names, images, masks, batch.seed_network, second)
