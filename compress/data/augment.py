"""Batched augmentation on the training device. The mask follows the image exactly.

N batch, C channels, H height, W width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.boxes import boxes
from compress.data.change import Change
from compress.data.crop import AS_IT_IS
from compress.data.warp import warped
from compress.settings.augment import AugmentSettings
from export.scoring import VOID

RGB = 3
Images = tuple[Tensor, Tensor]
"""Images NCHW and their masks NHW."""


class Augment(nn.Module):
    """Flip, turn and warp image and mask together; change the light and the colours of the image.

    Flips and quarter turns only move pixels; all other movements together resample them once. Randomness comes from
    torch's global generators alone, so a batch can be reproduced from its seed.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        super().__init__()
        self._settings = settings
        everything = settings.policy != "none"
        turns = settings.rotate_degrees > 0 or settings.shear_degrees > 0
        self._warps = turns or settings.scale != AS_IT_IS or everything
        self._gamma = settings.gamma > 0 or everything
        self._saturation = settings.saturation > 0 or everything
        self._hue = settings.hue > 0 or everything
        self._noise = settings.noise > 0 or everything

    def forward(self, images_NCHW: Tensor, masks_NHW: Tensor) -> Images:
        """Normalised float images and uint8 masks, augmented; pixels from outside the frame are void.

        With quarter turns, images that are not square come back padded to a square.
        """
        images, masks = self._moved(images_NCHW, masks_NHW)
        change = Change.drawn(self._settings, len(images), images.device)
        if self._warps:
            images, masks = warped(change, images, masks)
        images = self._lit(self._coloured(images, change), change)
        return self._cut_out(self._noisy(images, change), masks)

    def _moved(self, images: Tensor, masks: Tensor) -> Images:
        for axis, share in ((-1, self._settings.flip_horizontal), (-2, self._settings.flip_vertical)):
            if share > 0:
                images, masks = _some(share, (images, masks), (images.flip(axis), masks.flip(axis)))
        if self._settings.quarter_turn > 0:
            images, masks = _square(images, masks)
            turned = _some(0.5, _rotated(images, masks, 1), _rotated(images, masks, -1))
            images, masks = _some(self._settings.quarter_turn, (images, masks), turned)
        return images, masks

    def _coloured(self, images: Tensor, change: Change) -> Tensor:
        from kornia.enhance import adjust_gamma, adjust_hue, adjust_saturation

        is_rgb = images.shape[1] == RGB
        steps = [
            (self._gamma, adjust_gamma, change.factor("gamma")),
            (self._saturation and is_rgb, adjust_saturation, change.factor("saturation")),
            (self._hue and is_rgb, adjust_hue, 2 * math.pi * change["hue"]),
        ]
        for asked, adjust, amount in steps:
            if asked:
                images = adjust(images / 2 + 0.5, amount) * 2 - 1  # from -1..1 to 0..1, as kornia takes them, and back
        return images

    def _lit(self, images: Tensor, change: Change) -> Tensor:
        contrast, brightness = change.factor("contrast"), change["brightness"]
        return images * contrast[:, None, None, None] + brightness[:, None, None, None]

    def _noisy(self, images: Tensor, change: Change) -> Tensor:
        if not self._noise:
            return images
        return images + torch.randn_like(images) * change["noise"].abs()[:, None, None, None]

    def _cut_out(self, images: Tensor, masks: Tensor) -> Images:
        """Source: DeVries and Taylor 2017 (arXiv:1708.04552)."""
        if self._settings.cutout == 0:
            return images, masks
        count = len(images)
        sides = self._settings.cutout_side * (0.5 + torch.rand(2, count, device=images.device) / 2)
        hole = boxes(sides, (masks.shape[1], masks.shape[2]))
        hole &= (torch.rand(count, device=images.device) < self._settings.cutout)[:, None, None]
        return images.masked_fill(hole[:, None], 0), masks.masked_fill(hole, VOID)


def _some(share: float, pair: Images, other: Images) -> Images:
    """For each image the one in `other` with the probability `share`, else the one in `pair`."""
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
