"""What a training step minimises: the loss against the masks, the distance to a teacher if there is one, and a penalty
on the weights themselves.

N batch, C channels, K classes, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.checkpoint import frozen_copy
from compress.data.mixing import Second
from compress.models import all_logits
from compress.settings.fit import FitSettings, LossSettings
from compress.train.attention import Maps, attention, distance
from compress.train.losses import SegmentationLoss, distillation
from compress.train.sparsity import Penalty
from export.scoring import VOID


@dataclass(frozen=True)
class Teacher:
    """A frozen network whose logits the student follows."""

    network: nn.Module
    weight: float
    temperature: float
    attention_weight: float = 0.0
    """Weight of the distance of attention maps, beside that of logits."""

    @classmethod
    def of(cls, network: nn.Module, settings: FitSettings) -> "Teacher":
        """A frozen copy of `network`, with the weights and temperature of `settings`."""
        return cls(frozen_copy(network), settings.teacher_weight, settings.temperature, settings.attention_weight)


@dataclass(frozen=True)
class Passed:
    """What a forward pass gave."""

    heads: list[Tensor]
    """Logits, the served ones last."""
    taught: Tensor | None = None
    """The teacher's logits."""
    maps: tuple[Maps, Maps] | None = None
    """Attention of the network and of its teacher."""


@dataclass(frozen=True)
class Part:
    """Some images of a batch, and their share of a mean over the batch: by class-weighted pixels, and by pixels."""

    images_NCHW: Tensor
    masks_NHW: Tensor
    truth_share: Tensor | float = 1.0
    pixel_share: Tensor | float = 1.0
    second: Second | None = None
    second_truth_share: Tensor | float = 1.0


class Objective:
    """The mean loss over a network's heads; with a teacher, blended with the distance between the served logits."""

    def __init__(
        self,
        settings: LossSettings,
        class_weights: Tensor | None,
        teacher: Teacher | None,
        penalty: Penalty | None = None,
    ) -> None:
        """`class_weights` [K] are those of `SegmentationLoss`."""
        self._loss = SegmentationLoss(settings, class_weights)
        self._class_weights = class_weights
        self._teacher = teacher
        self._penalty = penalty

    def logits(self, network: nn.Module, part: Part) -> Passed:
        """The logits of the network and of the teacher; call it under autocast."""
        if self._teacher is None:
            return Passed(all_logits(network, part.images_NCHW))
        if not self._teacher.attention_weight:
            heads = all_logits(network, part.images_NCHW)
            with torch.no_grad():
                return Passed(heads, self._teacher.network(part.images_NCHW))
        with attention(network) as student:
            heads = all_logits(network, part.images_NCHW)
        with torch.no_grad(), attention(self._teacher.network) as teacher:
            return Passed(heads, self._teacher.network(part.images_NCHW), (student, teacher))

    def loss(self, passed: Passed, part: Part) -> Tensor:
        """What `part` adds to the loss of its batch, in float32."""
        hard = self._hard(passed, part.masks_NHW) * part.truth_share
        if part.second is not None:
            other = self._hard(passed, part.second.masks_NHW) * part.second_truth_share
            hard = torch.lerp(hard, other, part.second.share)
        if self._teacher is None or passed.taught is None:
            return hard
        temperature = self._teacher.temperature
        soft = distillation(passed.heads[-1], passed.taught, part.masks_NHW, temperature) * part.pixel_share
        if passed.maps is not None:
            soft = soft + self._teacher.attention_weight * distance(*passed.maps) * part.pixel_share
        return (1 - self._teacher.weight) * hard + self._teacher.weight * soft

    def _hard(self, passed: Passed, masks_NHW: Tensor) -> Tensor:
        return torch.stack([self._loss(head, masks_NHW) for head in passed.heads]).mean()

    def penalty(self, network: nn.Module) -> Tensor | None:
        """The penalty on the weights themselves, added to the loss once a step; None if there is none."""
        return None if self._penalty is None else self._penalty(network)

    def parts(
        self, images_NCHW: Tensor, masks_NHW: Tensor, at_once: int, second: Second | None = None
    ) -> Iterator[Part]:
        """The batch, `at_once` images at a time; the losses of its parts add up to that of the batch.

        That holds for the pixel loss and the teacher's, which are means over pixels. What depends on the batch as a
        whole (Dice and the like, the choice of hard pixels) is computed for each part separately, as BatchNorm's
        statistics are.
        """
        if len(images_NCHW) <= at_once:
            yield Part(images_NCHW, masks_NHW, second=second)
            return
        truth, pixels = self._truth(masks_NHW), _pixels(masks_NHW)
        seconds = None if second is None else torch.split(second.masks_NHW, at_once)
        pairs = zip(torch.split(images_NCHW, at_once), torch.split(masks_NHW, at_once), strict=True)
        for index, (images, masks) in enumerate(pairs):
            part = Part(images, masks, self._truth(masks) / truth, _pixels(masks) / pixels)
            if second is not None and seconds is not None:
                share = self._truth(seconds[index]) / self._truth(second.masks_NHW)
                part = replace(part, second=Second(seconds[index], second.share), second_truth_share=share)
            yield part

    def _truth(self, masks_NHW: Tensor) -> Tensor:
        """The divisor of the pixel loss of a batch: its pixels, each with the weight of its class."""
        if self._class_weights is None:
            return _pixels(masks_NHW)
        counted = masks_NHW[masks_NHW != VOID]
        pixels_K = torch.bincount(counted, minlength=len(self._class_weights))
        return (pixels_K * self._class_weights).sum().clamp(min=torch.finfo(torch.float32).tiny)


def _pixels(masks_NHW: Tensor) -> Tensor:
    return (masks_NHW != VOID).sum().clamp(min=1)
