"""Images of a batch, mixed with each other. Every image's partner is the one before it; batches are shuffled already.

N batch, C channels, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.data.boxes import boxes
from compress.settings.augment import AugmentSettings


@dataclass(frozen=True)
class Second:
    """The masks of the second images that are blended into those of a batch."""

    masks_NHW: Tensor
    share: float
    """Of the second image in each blend, and so of its mask in the loss; at most a half."""


def cutmixed(settings: AugmentSettings, images_NCHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of its partner, image and mask, into each image that is drawn for it.

    There is a label for each pixel, so unlike in classification no weighted second target is needed.
    Source: Yun et al. 2019 (arXiv:1905.04899); for segmentation French et al. 2020 (arXiv:1906.01916).
    """
    count = len(images_NCHW)
    if settings.cutmix == 0 or count < 2:
        return images_NCHW, masks_NHW
    device = images_NCHW.device
    drawn_N = torch.rand(count, device=device) < settings.cutmix
    side_N = (1 - _beta(settings.cutmix_alpha, count)).sqrt().to(device)
    box_NHW = boxes(side_N.expand(2, -1), (masks_NHW.shape[1], masks_NHW.shape[2])) & drawn_N[:, None, None]
    return (
        torch.where(box_NHW[:, None], images_NCHW.roll(1, 0), images_NCHW),
        torch.where(box_NHW, masks_NHW.roll(1, 0), masks_NHW),
    )


def mixed(settings: AugmentSettings, images_NCHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Second | None]:
    """Blend the images and their partners, with one weight for the batch; None if the batch was not drawn for it.

    Source: Zhang et al. 2018 (arXiv:1710.09412).
    """
    if settings.mixup == 0 or len(images_NCHW) < 2 or float(torch.rand(())) >= settings.mixup:
        return images_NCHW, None
    weight = float(_beta(settings.mixup_alpha, 1))
    share = min(weight, 1 - weight)
    return torch.lerp(images_NCHW, images_NCHW.roll(1, 0), share), Second(masks_NHW.roll(1, 0), share)


def _beta(alpha: float, count: int) -> Tensor:
    """Draw on the CPU, from torch's global generator, whatever the device."""
    drawn: Tensor = torch.distributions.Beta(alpha, alpha).sample((count,))
    return drawn
