"""Losses over logits, in float32 whatever the autocast; one void mask is shared by all of them.

N batch, K classes, H height, W width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compress.recipe import LossSettings
from export.errors import RecipeError, ShapeError
from export.scoring import VOID


class SegmentationLoss:
    """The loss of single pixels plus `dice_weight` times soft Dice, as `settings` say."""

    def __init__(self, settings: LossSettings, class_weights: Tensor | None = None) -> None:
        """`class_weights` [K] are those of the pixel loss; None: all classes weigh the same."""
        self._settings = settings
        self._class_weights = class_weights

    def __call__(self, logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
        """A scalar in float32 (float64 for logits in float64); zero when every pixel is void.

        Raises ShapeError when N, H or W differ.
        """
        pixels = Pixels.of(logits_NKHW, target_NHW)
        loss = pixel_loss(
            pixels,
            class_weights=self._class_weights,
            label_smoothing=self._settings.label_smoothing,
            focal_gamma=self._settings.focal_gamma if self._settings.pixel == "focal" else 0.0,
        )
        if self._settings.dice_weight > 0:
            loss = loss + self._settings.dice_weight * soft_dice(pixels)
        return loss


@dataclass(frozen=True)
class Pixels:
    """What a network says of every pixel beside the truth, void masked: made once, shared by all terms of a loss."""

    log_probability_NKHW: Tensor
    target_NHW: Tensor
    """int64, VOID where void."""
    counted_NHW: Tensor
    """bool, false where void."""
    truth_NKHW: Tensor
    """bool, one-hot; a void pixel is of no class."""
    counts_K: Tensor
    """int64, pixels of each class."""

    @classmethod
    def of(cls, logits_NKHW: Tensor, target_NHW: Tensor) -> "Pixels":
        """Raises ShapeError when N, H or W differ."""
        counted_NHW = _counted(logits_NKHW, target_NHW)
        classes_KHW = torch.arange(logits_NKHW.shape[1], device=target_NHW.device)[:, None, None]
        truth_NKHW = target_NHW[:, None] == classes_KHW
        return cls(
            _without_void(logits_NKHW, counted_NHW).log_softmax(1),
            target_NHW.long(),
            counted_NHW,
            truth_NKHW,
            truth_NKHW.sum((0, 2, 3)),
        )


def pixel_loss(
    pixels: Pixels,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Cross-entropy, or focal loss where `focal_gamma` > 0; zero when no pixel weighs anything.

    The mean is that of torch's `cross_entropy` with `weight`, `label_smoothing` and `ignore_index`: each pixel weighs
    what `class_weights` [K] say of its true class.
    """
    log_p = pixels.log_probability_NKHW
    weights_K = log_p.new_ones(log_p.shape[1]) if class_weights is None else class_weights.to(log_p)
    cost_NHW = F.nll_loss(log_p, pixels.target_NHW, weights_K, ignore_index=VOID, reduction="none")
    if label_smoothing > 0:
        cost_NHW = _smoothed(cost_NHW, pixels, weights_K, label_smoothing)
    if focal_gamma > 0:
        cost_NHW = _focused(cost_NHW, pixels, focal_gamma)
    weight = (pixels.counts_K * weights_K).sum()
    return cost_NHW.sum() / weight.masked_fill(weight == 0, torch.inf)


def _smoothed(cost_NHW: Tensor, pixels: Pixels, weights_K: Tensor, share: float) -> Tensor:
    """As if `share` of the truth were spread over all classes. Source: Szegedy et al. 2016 (arXiv:1512.00567)."""
    spread_NHW = -(pixels.log_probability_NKHW * weights_K[:, None, None]).mean(1) * pixels.counted_NHW
    return (1 - share) * cost_NHW + share * spread_NHW


def _focused(cost_NHW: Tensor, pixels: Pixels, gamma: float) -> Tensor:
    """Times (1 - p) ** gamma, p the probability of the true class. Source: Lin et al. 2017 (arXiv:1708.02002)."""
    log_p = pixels.log_probability_NKHW
    surprise_NHW = F.nll_loss(log_p, pixels.target_NHW, ignore_index=VOID, reduction="none")
    doubt_NHW = -torch.expm1(-surprise_NHW)
    # Kept off zero, where a power below one has an infinite slope.
    return doubt_NHW.clamp(min=torch.finfo(log_p.dtype).tiny) ** gamma * cost_NHW


def soft_dice(pixels: Pixels) -> Tensor:
    """1 - Dice per class over the whole batch, averaged over the classes present in the truth; zero when none is.

    Source: Milletari et al. 2016 (arXiv:1606.04797), with the sum in the denominator instead of the sum of squares.
    """
    probability_NKHW = pixels.log_probability_NKHW.exp() * pixels.counted_NHW[:, None]
    overlap_K = (probability_NKHW * pixels.truth_NKHW).sum((0, 2, 3))
    total_K = probability_NKHW.sum((0, 2, 3)) + pixels.counts_K
    present_K = pixels.counts_K > 0
    dice_K = 2 * overlap_K / total_K.clamp(min=1)
    return ((1 - dice_K) * present_K).sum() / present_K.sum().clamp(min=1)


def distillation(logits_NKHW: Tensor, teacher_NKHW: Tensor, target_NHW: Tensor, temperature: float) -> Tensor:
    """KL of the student from the teacher at `temperature`, mean over the pixels that are not void, times T².

    Source: Hinton et al. 2015 (arXiv:1503.02531). Raises ShapeError when the shapes differ.
    """
    if logits_NKHW.shape != teacher_NKHW.shape:
        raise ShapeError(f"student gives {list(logits_NKHW.shape)}, teacher {list(teacher_NKHW.shape)}")
    counted_NHW = _counted(logits_NKHW, target_NHW)
    student, teacher = (
        (_without_void(logits, counted_NHW) / temperature).log_softmax(1) for logits in (logits_NKHW, teacher_NKHW)
    )
    divergence_NHW = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return divergence_NHW.sum() / counted_NHW.sum().clamp(min=1) * temperature**2


def class_weights(settings: LossSettings, pixels_K: NDArray[np.int64]) -> Tensor | None:
    """The weights [K] that `settings` ask for, of a training split with so many pixels of each class; None: equal.

    "balanced" lifts rare classes by the square root alone, so that a handful of pixels does not rule. A class that
    never occurs weighs 0; it is not in the mean of 1. Raises RecipeError when weights and classes differ in number,
    and when there is no pixel to balance.
    """
    if settings.class_weights == "equal":
        return None
    if settings.class_weights == "balanced":
        occurs_K = pixels_K > 0
        if not occurs_K.any():
            raise RecipeError("loss.class_weights", ["nothing to balance: every training mask is void everywhere"])
        rarity_K = np.divide(1.0, np.sqrt(pixels_K), out=np.zeros(len(pixels_K)), where=occurs_K)
        return torch.from_numpy(rarity_K / rarity_K[occurs_K].mean()).float()
    given, classes = len(settings.class_weights), len(pixels_K)
    if given != classes:
        raise RecipeError("loss.class_weights", [f"{given} weights for {classes} classes; give one for each, in order"])
    return torch.tensor(settings.class_weights)


def _counted(logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Where the truth is not void [N, H, W]."""
    n, _, h, w = logits_NKHW.shape
    if target_NHW.shape != (n, h, w):
        raise ShapeError(f"logits {list(logits_NKHW.shape)} and target {list(target_NHW.shape)} do not go together")
    return target_NHW != VOID


def _without_void(logits_NKHW: Tensor, counted_NHW: Tensor) -> Tensor:
    """At least float32, and zero in void: not even an infinity there then reaches a loss or its gradient."""
    wide = torch.promote_types(logits_NKHW.dtype, torch.float32)
    return logits_NKHW.to(wide).masked_fill(~counted_NHW[:, None], 0)
