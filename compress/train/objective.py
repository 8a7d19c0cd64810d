"""What a training step makes small: the loss against the masks, and where there is a teacher the distance to it.

N batch, C channels, K classes, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.models import all_logits
from compress.recipe import LossSettings
from compress.train.losses import SegmentationLoss, distillation
from export.scoring import VOID


@dataclass(frozen=True)
class Teacher:
    """A frozen network whose logits the student follows."""

    network: nn.Module
    weight: float
    temperature: float


@dataclass(frozen=True)
class Part:
    """Some images of a batch, and what they weigh in a mean over the batch: of the truth, and of the pixels."""

    images_NCHW: Tensor
    masks_NHW: Tensor
    truth_share: Tensor | float = 1.0
    pixel_share: Tensor | float = 1.0


class Objective:
    """The mean loss over a network's heads; with a teacher, its weight of the distance between the served logits."""

    def __init__(self, settings: LossSettings, class_weights: Tensor | None, teacher: Teacher | None) -> None:
        """`class_weights` [K] are those of `SegmentationLoss`."""
        self._loss = SegmentationLoss(settings, class_weights)
        self._class_weights = class_weights
        self._teacher = teacher

    def logits(self, network: nn.Module, part: Part) -> tuple[list[Tensor], Tensor | None]:
        """Of the network, the served ones last, and of the teacher; to be called under autocast."""
        heads = all_logits(network, part.images_NCHW)
        if self._teacher is None:
            return heads, None
        with torch.no_grad():
            return heads, self._teacher.network(part.images_NCHW)

    def loss(self, logits: tuple[list[Tensor], Tensor | None], part: Part) -> Tensor:
        """What `part` adds to the loss of its batch, in float32."""
        heads, taught = logits
        hard = torch.stack([self._loss(head, part.masks_NHW) for head in heads]).mean() * part.truth_share
        if self._teacher is None or taught is None:
            return hard
        soft = distillation(heads[-1], taught, part.masks_NHW, self._teacher.temperature) * part.pixel_share
        return (1 - self._teacher.weight) * hard + self._teacher.weight * soft

    def parts(self, images_NCHW: Tensor, masks_NHW: Tensor, at_once: int) -> Iterator[Part]:
        """The batch, `at_once` images at a time; the losses of its parts add up to that of the batch.

        So they do for the pixel loss and the teacher's, which are means over pixels. Dice is taken of each part by
        itself, as BatchNorm's statistics are.
        """
        if len(images_NCHW) <= at_once:
            yield Part(images_NCHW, masks_NHW)
            return
        truth, pixels = self._truth(masks_NHW), _pixels(masks_NHW)
        pairs = zip(torch.split(images_NCHW, at_once), torch.split(masks_NHW, at_once), strict=True)
        for images, masks in pairs:
            yield Part(images, masks, self._truth(masks) / truth, _pixels(masks) / pixels)

    def _truth(self, masks_NHW: Tensor) -> Tensor:
        """What the pixel loss of a batch is divided by: its pixels, each with the weight of its class."""
        if self._class_weights is None:
            return _pixels(masks_NHW)
        counted = masks_NHW[masks_NHW != VOID]
        pixels_K = torch.bincount(counted, minlength=len(self._class_weights))
        return (pixels_K * self._class_weights).sum().clamp(min=torch.finfo(torch.float32).tiny)


def _pixels(masks_NHW: Tensor) -> Tensor:
    return (masks_NHW != VOID).sum().clamp(min=1)
