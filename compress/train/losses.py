"""Losses over logits, in float32 whatever the autocast; one void mask is shared by all of them.

N batch, K classes, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from export.errors import ShapeError
from export.scoring import VOID


def cross_entropy(logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that are not void; zero when all are.

    Raises ShapeError when N, H or W differ.
    """
    _check(logits_NKHW, target_NHW)
    total = F.cross_entropy(logits_NKHW.float(), target_NHW.long(), ignore_index=VOID, reduction="sum")
    return total / (target_NHW != VOID).sum().clamp(min=1)


def soft_dice(logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
    """1 - Dice per class over the whole batch, averaged over the classes present in `target`.

    Source: Milletari et al. 2016 (arXiv:1606.04797), with the sum in the denominator instead of the sum of
    squares. Zero when every pixel is void. Raises ShapeError when N, H or W differ.
    """
    _check(logits_NKHW, target_NHW)
    counted = (target_NHW != VOID)[:, None]
    classes = logits_NKHW.shape[1]
    probability = logits_NKHW.float().softmax(1) * counted
    index = torch.where(target_NHW == VOID, 0, target_NHW).long()
    truth = F.one_hot(index, classes).permute(0, 3, 1, 2).float() * counted
    overlap = (probability * truth).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0
    dice = 2 * overlap / total.clamp(min=1e-6)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def distillation(logits_NKHW: Tensor, teacher_NKHW: Tensor, target_NHW: Tensor, temperature: float) -> Tensor:
    """KL of the student from the teacher at `temperature`, mean over the pixels that are not void, times T².

    Source: Hinton et al. 2015 (arXiv:1503.02531). Raises ShapeError when the shapes differ.
    """
    _check(logits_NKHW, target_NHW)
    if logits_NKHW.shape != teacher_NKHW.shape:
        raise ShapeError(f"student gives {list(logits_NKHW.shape)}, teacher {list(teacher_NKHW.shape)}")
    student = (logits_NKHW.float() / temperature).log_softmax(1)
    teacher = (teacher_NKHW.float() / temperature).log_softmax(1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    counted = target_NHW != VOID
    return (divergence * counted).sum() / counted.sum().clamp(min=1) * temperature**2


def _check(logits_NKHW: Tensor, target_NHW: Tensor) -> None:
    n, _, h, w = logits_NKHW.shape
    if target_NHW.shape != (n, h, w):
        raise ShapeError(f"logits {list(logits_NKHW.shape)} and target {list(target_NHW.shape)} do not go together")
