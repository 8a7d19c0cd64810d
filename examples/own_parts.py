"""An augmentation, a loss and a learning-rate schedule of your own.

    compress train --data data --out run/own \\
        --set train.augment.own=examples/own_parts.py:stripes \\
        --set train.loss.own=examples/own_parts.py:edges \\
        --set train.schedule.kind=examples/own_parts.py:steps_down
"""

import torch
from torch import Tensor


def stripes(images_NCHW: Tensor, masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Let a scan line fail in half of the images: its pixels are grey, and void in the mask."""
    count, _, height, _ = images_NCHW.shape
    row_N = torch.randint(height, (count,), device=images_NCHW.device)
    failed_N = torch.rand(count, device=images_NCHW.device) < 0.5
    line_NHW = (torch.arange(height, device=images_NCHW.device) == row_N[:, None])[:, :, None] & failed_N[:, None, None]
    return images_NCHW.masked_fill(line_NHW[:, None], 0.0), masks_NHW.masked_fill(line_NHW, 255)


def edges(logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Cross-entropy of the pixels whose right neighbour is of another class."""
    beside = (target_NHW[:, :, 1:] != target_NHW[:, :, :-1]) & (target_NHW[:, :, 1:] != 255)
    target = target_NHW[:, :, :-1].masked_fill(~beside, 255)
    total = torch.nn.functional.cross_entropy(logits_NKHW[..., :-1], target, ignore_index=255, reduction="sum")
    return total / (target != 255).sum().clamp(min=1)


def steps_down(step: int, steps: int) -> float:
    """The whole rate, a tenth of it from two thirds of the steps on, and a hundredth in the last tenth."""
    done = step / steps
    return 1.0 if done < 2 / 3 else 0.1 if done < 0.9 else 0.01
