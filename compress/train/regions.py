"""Losses of whole classes, computed over the whole batch: Dice, Tversky, Lovász-softmax.

N batch, K classes, H height, W width, P pixels.
"""

import torch
from torch import Tensor

from compress.train.pixels import Pixels


def soft_dice(pixels: Pixels) -> Tensor:
    """1 - Dice per class over the whole batch, averaged over the classes present in the truth; zero when none is.

    Source: Milletari et al. 2016 (arXiv:1606.04797), with the sum in the denominator instead of the sum of squares.
    """
    return tversky(pixels, 0.5)


def tversky(pixels: Pixels, missed: float) -> Tensor:
    """1 - hits / (hits + `missed` x misses + (1 - `missed`) x false alarms) per class, averaged as Dice is.

    With `missed` = 0.5 it is Dice.

    Source: Salehi et al. 2017 (arXiv:1706.05721), whose beta is `missed`.
    """
    probability_NKHW = pixels.log_probability_NKHW.exp() * pixels.counted_NHW[:, None]
    hits_K = (probability_NKHW * pixels.truth_NKHW).sum((0, 2, 3))
    predicted_K = probability_NKHW.sum((0, 2, 3))
    # hits + missed (counts - hits) + (1 - missed) (predicted - hits): the hits cancel out.
    total_K = missed * pixels.counts_K + (1 - missed) * predicted_K
    return _mean_of_present(1 - hits_K / total_K.clamp(min=torch.finfo(total_K.dtype).tiny), pixels)


def lovasz(pixels: Pixels) -> Tensor:
    """The Lovász extension of 1 - IoU per class over the whole batch, averaged over the classes present in the truth.

    Where every probability is 0 or 1 it is 1 - mIoU of these classes; in between it is piecewise linear: the metric,
    made differentiable. Source: Berman et al. 2018 (arXiv:1705.08790).
    """
    present_K = pixels.counts_K > 0
    truth_KP = pixels.truth_NKHW[:, present_K].transpose(0, 1).flatten(1)
    probability_KP = pixels.log_probability_NKHW[:, present_K].exp().transpose(0, 1).flatten(1)
    # A void pixel has no error, and adds nothing wherever it is sorted.
    errors_KP = (truth_KP.to(probability_KP.dtype) - probability_KP).abs() * pixels.counted_NHW.flatten()
    errors_KP, order_KP = errors_KP.sort(dim=1, descending=True)
    truth_KP = truth_KP.gather(1, order_KP)
    # The loss of IoU if the first p + 1 pixels are wrong and no others, in whole numbers up to the division.
    truth_K1 = pixels.counts_K[present_K][:, None]
    left_KP = truth_K1 - truth_KP.cumsum(1)
    union_KP = truth_K1 + (~truth_KP).cumsum(1)
    lost_KP = 1 - left_KP.to(errors_KP.dtype) / union_KP
    slope_KP = lost_KP.diff(dim=1, prepend=lost_KP.new_zeros(len(lost_KP), 1))
    return (errors_KP * slope_KP).sum() / present_K.sum().clamp(min=1)


def _mean_of_present(loss_K: Tensor, pixels: Pixels) -> Tensor:
    """Zero when no class is in the truth."""
    present_K = pixels.counts_K > 0
    return (loss_K * present_K).sum() / present_K.sum().clamp(min=1)
