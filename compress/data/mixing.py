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
    """The masks of the images that shine through those of a batch."""

    masks_NHW: Tensor
    share: float
    """Of the second images in each picture, and so of these masks in the loss; at most a half."""


def cutmixed(settings: AugmentSettings, images_NCHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Rectangles of the partners in the images that are drawn for it, with the masks that belong there.

    A picture has one label for each pixel, so no share of a second target is needed, as it is in classification.
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
    """A weighted mean of the images and their partners, one weight a batch; None where the batch was not drawn for it.

    Source: Zhang et al. 2018 (arXiv:1710.09412).
    """
    if settings.mixup == 0 or len(images_NCHW) < 2 or float(torch.rand(())) >= settings.mixup:
        return images_NCHW, None
    weight = float(_beta(settings.mixup_alpha, 1))
    share = min(weight, 1 - weight)
    return torch.lerp(images_NCHW, images_NCHW.roll(1, 0), share), Second(masks_NHW.roll(1, 0), share)


def _beta(alpha: float, count: int) -> Tensor:
    """On the CPU, from torch's global generator, whatever the device."""
    drawn: Tensor = torch.distributions.Beta(alpha, alpha).sample((count,))
    return drawn
