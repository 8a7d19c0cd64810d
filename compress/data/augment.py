"""Batched augmentation on the training device (kornia). The mask follows the image exactly.

N batch, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from compress.recipe import AugmentSettings
from export.scoring import VOID


class Augment(nn.Module):
    """Flip, rotate and zoom image and mask together; change brightness and contrast of the image.

    Randomness comes from torch's global generator alone, so a seeded epoch can be made again.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        super().__init__()
        from kornia.augmentation import AugmentationSequential, RandomAffine, RandomHorizontalFlip, RandomVerticalFlip

        self._brightness = settings.brightness
        self._contrast = settings.contrast
        steps: list[nn.Module] = [
            RandomHorizontalFlip(p=settings.flip_horizontal),
            RandomVerticalFlip(p=settings.flip_vertical),
        ]
        if settings.rotate_degrees or settings.scale != (1.0, 1.0):
            steps.append(RandomAffine(degrees=settings.rotate_degrees, scale=settings.scale, p=1.0))
        self._geometry = AugmentationSequential(*steps, data_keys=["input", "mask"])

    def forward(self, images_NCHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float images and uint8 masks, augmented; what comes from outside the frame is void."""
        # kornia fills with 0: that is the padding value of a normalised image, and is made void in a mask by
        # counting classes from 1 meanwhile.
        shifted = torch.where(masks_NHW == VOID, 0, masks_NHW.to(torch.int16) + 1)
        images, masks = self._geometry(images_NCHW, shifted[:, None].to(images_NCHW.dtype))
        masks = masks[:, 0].round().to(torch.int16) - 1
        masks = torch.where(masks < 0, VOID, masks).to(torch.uint8)
        return self._photometric(images), masks

    def _photometric(self, images: Tensor) -> Tensor:
        def drawn(spread: float) -> Tensor:
            return (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1) * spread

        return images * (1 + drawn(self._contrast)) + drawn(self._brightness)
