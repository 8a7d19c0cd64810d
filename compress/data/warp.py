"""Image and mask, rotated, sheared, shifted and zoomed together: resampled once, whatever is asked for.

N batch, C channels, H height, W width.
"""

import math

import torch
from torch import Tensor

from compress.data.change import Change
from export.scoring import VOID


def warped(change: Change, images_NCHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Warp images (bilinear) and masks (nearest) about their centres; pixels from outside the frame are 0 and void."""
    from kornia.geometry.transform import get_affine_matrix2d, warp_affine

    height, width = masks_NHW.shape[1:]
    size = images_NCHW.new_tensor([width, height])
    matrices = get_affine_matrix2d(
        torch.stack([change["shift_x"], change["shift_y"]], dim=1) * size,
        ((size - 1) / 2).expand(len(images_NCHW), 2),
        change["zoom"].exp()[:, None].expand(-1, 2),
        change["angle"],
        change["shear_x"] * (math.pi / 180),
        change["shear_y"] * (math.pi / 180),
    )[:, :2]
    # Pixels from outside come back as 0. In a normalised image that is the padding value; in a mask, classes are
    # counted from 1 during the warp, so that 0 can become void.
    counted = torch.where(masks_NHW == VOID, 0, masks_NHW.to(torch.int16) + 1)[:, None].to(images_NCHW.dtype)
    images = warp_affine(images_NCHW, matrices, (height, width), "bilinear", "zeros", align_corners=False)
    moved = warp_affine(counted, matrices, (height, width), "nearest", "zeros", align_corners=False)
    classes = moved[:, 0].round().to(torch.int16) - 1
    return images, torch.where(classes < 0, VOID, classes).to(torch.uint8)
