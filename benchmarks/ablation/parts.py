"""What the changes need beside the recipe's own settings."""

import torch
from torch import Tensor

from export.scoring import VOID


def cross_entropy(logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Plain cross-entropy, to stand beside focal loss as `train.loss.own`: the mean over what is not void."""
    total = torch.nn.functional.cross_entropy(logits_NKHW, target_NHW, ignore_index=VOID, reduction="sum")
    return total / (target_NHW != VOID).sum().clamp(min=1)
