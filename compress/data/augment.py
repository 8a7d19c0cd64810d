"""Batched augmentation on the training device. The mask follows the image exactly.

N batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.recipe import AugmentSettings
from export.scoring import VOID

RGB = 3
Images = tuple[Tensor, Tensor]
"""Images NCHW and their masks NHW."""


class Augment(nn.Module):
    """Flip, turn, rotate and zoom image and mask together; change the light and the colours of the image.

    Flips and quarter turns move pixels, rotation and zoom resample them (kornia). Randomness comes from torch's global
    generators alone, so a seeded batch can be made again.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        super().__init__()
        self._settings = settings
        self._resampling: nn.Module | None = None
        if settings.rotate_degrees or settings.scale != (1.0, 1.0):
            from kornia.augmentation import AugmentationSequential, RandomAffine

            affine = RandomAffine(degrees=settings.rotate_degrees, scale=settings.scale, p=1.0)
            self._resampling = AugmentationSequential(affine, data_keys=["input", "mask"])
        self._gamma: nn.Module | None = None
        if settings.gamma:
            from kornia.augmentation import RandomGamma

            self._gamma = RandomGamma((1 - settings.gamma, 1 + settings.gamma), p=1.0)
        self._colour: nn.Module | None = None
        if settings.saturation or settings.hue:
            from kornia.augmentation import ColorJiggle

            self._colour = ColorJiggle(saturation=settings.saturation, hue=settings.hue, p=1.0)

    def forward(self, images_NCHW: Tensor, masks_NHW: Tensor) -> Images:
        """Normalised float images and uint8 masks, augmented; what comes from outside the frame is void.

        Where quarter turns are asked for, what is not square comes back padded to a square.
        """
        pair = self._moved(images_NCHW, masks_NHW)
        images, masks = pair if self._resampling is None else _resampled(self._resampling, *pair)
        return self._lit(self._coloured(images)), masks

    def _moved(self, images: Tensor, masks: Tensor) -> Images:
        for axis, share in ((-1, self._settings.flip_horizontal), (-2, self._settings.flip_vertical)):
            if share > 0:
                images, masks = _some(share, (images, masks), (images.flip(axis), masks.flip(axis)))
        if self._settings.quarter_turn > 0:
            images, masks = _square(images, masks)
            turned = _some(0.5, _rotated(images, masks, 1), _rotated(images, masks, -1))
            images, masks = _some(self._settings.quarter_turn, (images, masks), turned)
        return images, masks

    def _coloured(self, images: Tensor) -> Tensor:
        for change in (self._gamma, self._colour if images.shape[1] == RGB else None):
            if change is not None:
                images = change(images / 2 + 0.5) * 2 - 1  # from -1..1 to 0..1, as kornia takes them, and back
        return images

    def _lit(self, images: Tensor) -> Tensor:
        def drawn(spread: float) -> Tensor:
            return (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1) * spread

        return images * (1 + drawn(self._settings.contrast)) + drawn(self._settings.brightness)


def _some(share: float, pair: Images, other: Images) -> Images:
    """Of each image the one of `other` with the probability `share`."""
    chosen_N = torch.rand(len(pair[0]), device=pair[0].device) < share
    return (
        torch.where(chosen_N[:, None, None, None], other[0], pair[0]),
        torch.where(chosen_N[:, None, None], other[1], pair[1]),
    )


def _rotated(images: Tensor, masks: Tensor, quarters: int) -> Images:
    return images.rot90(quarters, (-2, -1)), masks.rot90(quarters, (-2, -1))


def _square(images: Tensor, masks: Tensor) -> Images:
    height, width = masks.shape[1:]
    side = max(height, width)
    missing = (0, side - width, 0, side - height)
    return F.pad(images, missing), F.pad(masks, missing, value=VOID)


def _resampled(affine: nn.Module, images: Tensor, masks: Tensor) -> Images:
    # kornia fills with 0: that is the padding value of a normalised image, and is made void in a mask by
    # counting classes from 1 meanwhile.
    counted = torch.where(masks == VOID, 0, masks.to(torch.int16) + 1)
    images, moved = affine(images, counted[:, None].to(images.dtype))
    classes = moved[:, 0].round().to(torch.int16) - 1
    return images, torch.where(classes < 0, VOID, classes).to(torch.uint8)
