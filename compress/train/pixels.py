"""A network's prediction and the truth for every pixel, with one void mask that all losses share.

N batch, K classes, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from export.errors import ShapeError
from export.scoring import VOID


@dataclass(frozen=True)
class Pixels:
    """Prediction and truth for every pixel, void masked: made once, shared by all terms of a loss."""

    log_probability_NKHW: Tensor
    target_NHW: Tensor
    """int64, VOID where void."""
    counted_NHW: Tensor
    """bool, false where void."""
    truth_NKHW: Tensor
    """bool, one-hot; a void pixel has no class."""
    counts_K: Tensor
    """int64, pixels of each class."""

    @classmethod
    def of(cls, logits_NKHW: Tensor, target_NHW: Tensor) -> "Pixels":
        """Raises ShapeError when N, H or W differ."""
        counted_NHW = counted(logits_NKHW, target_NHW)
        classes_KHW = torch.arange(logits_NKHW.shape[1], device=target_NHW.device)[:, None, None]
        truth_NKHW = target_NHW[:, None] == classes_KHW
        return cls(
            without_void(logits_NKHW, counted_NHW).log_softmax(1),
            target_NHW.long(),
            counted_NHW,
            truth_NKHW,
            truth_NKHW.sum((0, 2, 3)),
        )


def counted(logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Where the truth is not void [N, H, W]."""
    n, _, h, w = logits_NKHW.shape
    if target_NHW.shape != (n, h, w):
        raise ShapeError(f"logits {list(logits_NKHW.shape)} and target {list(target_NHW.shape)} do not match")
    return target_NHW != VOID


def without_void(logits_NKHW: Tensor, counted_NHW: Tensor) -> Tensor:
    """The logits, at least float32 and zero in void: not even an infinity there then reaches a loss or its gradient."""
    wide = torch.promote_types(logits_NKHW.dtype, torch.float32)
    return logits_NKHW.to(wide).masked_fill(~counted_NHW[:, None], 0)
