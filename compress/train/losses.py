"""The loss of a network's logits, in float32 whatever the autocast: a loss of single pixels, and of whole classes.

N batch, K classes, H height, W width.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compress.settings.fit import FitSettings, LossSettings
from compress.train import own
from compress.train.pixels import Pixels, counted, without_void
from compress.train.regions import lovasz, soft_dice, tversky
from export.errors import RecipeError, ShapeError
from export.scoring import VOID


class SegmentationLoss:
    """The pixel loss plus the weighted losses of whole classes, as `settings` say."""

    def __init__(self, settings: LossSettings, class_weights: Tensor | None = None) -> None:
        """`class_weights` [K] are those of the pixel loss; None: all classes weigh the same."""
        self._settings = settings
        self._class_weights = class_weights
        self._own = None if settings.own is None else own.loss(settings.own)

    def __call__(self, logits_NKHW: Tensor, target_NHW: Tensor) -> Tensor:
        """A scalar in float32 (float64 for logits in float64); zero when every pixel is void.

        Raises ShapeError when N, H or W differ.
        """
        chosen = self._settings
        pixels = Pixels.of(logits_NKHW, target_NHW)
        loss = self._of_pixels(pixels)
        if chosen.dice_weight > 0:
            loss = loss + chosen.dice_weight * soft_dice(pixels)
        if chosen.tversky_weight > 0:
            loss = loss + chosen.tversky_weight * tversky(pixels, chosen.tversky_missed)
        if chosen.lovasz_weight > 0:
            loss = loss + chosen.lovasz_weight * lovasz(pixels)
        if self._own is not None:
            logits = without_void(logits_NKHW, pixels.counted_NHW)
            loss = loss + chosen.own_weight * self._own(logits, pixels.target_NHW)
        return loss

    def _of_pixels(self, pixels: Pixels) -> Tensor:
        chosen = self._settings
        if chosen.pixel == "none":
            return pixels.log_probability_NKHW.new_zeros(())
        if chosen.pixel == "focal":
            return self._with_cross_entropy(self._weighed(pixels, focal_gamma=chosen.focal_gamma), pixels)
        if chosen.pixel == "ohem":
            return self._weighed(pixels, hard_NHW=hard(pixels, chosen.ohem_threshold, chosen.ohem_share))
        return self._weighed(pixels)

    def _with_cross_entropy(self, focal: Tensor, pixels: Pixels) -> Tensor:
        weight = self._settings.cross_entropy_weight
        return focal + weight * self._weighed(pixels) if weight > 0 else focal

    def _weighed(self, pixels: Pixels, *, focal_gamma: float = 0.0, hard_NHW: Tensor | None = None) -> Tensor:
        return pixel_loss(
            pixels,
            class_weights=self._class_weights,
            label_smoothing=self._settings.label_smoothing,
            focal_gamma=focal_gamma,
            hard_NHW=hard_NHW,
        )


def pixel_loss(
    pixels: Pixels,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    hard_NHW: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, or focal loss if `focal_gamma` > 0, over the pixels `hard_NHW` (None: all).

    The mean is that of torch's `cross_entropy` with `weight`, `label_smoothing` and `ignore_index`: each pixel has the
    weight of its true class in `class_weights` [K]. Zero when all weights are.
    """
    log_p = pixels.log_probability_NKHW
    weights_K = log_p.new_ones(log_p.shape[1]) if class_weights is None else class_weights.to(log_p)
    cost_NHW = F.nll_loss(log_p, pixels.target_NHW, weights_K, ignore_index=VOID, reduction="none")
    if label_smoothing > 0:
        cost_NHW = _smoothed(cost_NHW, pixels, weights_K, label_smoothing)
    if focal_gamma > 0:
        cost_NHW = _focused(cost_NHW, pixels, focal_gamma)
    counts_K = pixels.counts_K
    if hard_NHW is not None:
        cost_NHW = cost_NHW * hard_NHW
        counts_K = (pixels.truth_NKHW & hard_NHW[:, None]).sum((0, 2, 3))
    weight = (counts_K * weights_K).sum()
    return cost_NHW.sum() / weight.masked_fill(weight == 0, torch.inf)


@torch.no_grad()
def hard(pixels: Pixels, threshold: float, share: float) -> Tensor:
    """The hard pixels [N, H, W]: those whose true class has a probability of at most `threshold`.

    At least a `share` of the batch's pixels is hard: if need be, those that the network is least sure of.

    Source: online hard example mining, Shrivastava et al. 2016 (arXiv:1604.03540), for single pixels.
    """
    surprise_NHW = _surprise(pixels).masked_fill(~pixels.counted_NHW, -1)
    total = surprise_NHW.numel()
    least = max(1, math.ceil(share * int(pixels.counted_NHW.sum())))
    hardest = surprise_NHW.flatten().kthvalue(total + 1 - least).values
    return pixels.counted_NHW & (surprise_NHW >= hardest.clamp(max=-math.log(threshold)))


def _smoothed(cost_NHW: Tensor, pixels: Pixels, weights_K: Tensor, share: float) -> Tensor:
    """As if `share` of the truth were spread over all classes. Source: Szegedy et al. 2016 (arXiv:1512.00567)."""
    spread_NHW = -(pixels.log_probability_NKHW * weights_K[:, None, None]).mean(1) * pixels.counted_NHW
    return (1 - share) * cost_NHW + share * spread_NHW


def _focused(cost_NHW: Tensor, pixels: Pixels, gamma: float) -> Tensor:
    """Cost times (1 - p) ** gamma, p the probability of the true class. Source: Lin et al. 2017 (arXiv:1708.02002)."""
    doubt_NHW = -torch.expm1(-_surprise(pixels))
    # Kept above zero, where a power below one has an infinite slope.
    return doubt_NHW.clamp(min=torch.finfo(doubt_NHW.dtype).tiny) ** gamma * cost_NHW


def _surprise(pixels: Pixels) -> Tensor:
    """-log p of the true class [N, H, W]; 0 in void."""
    return F.nll_loss(pixels.log_probability_NKHW, pixels.target_NHW, ignore_index=VOID, reduction="none")


def distillation(logits_NKHW: Tensor, teacher_NKHW: Tensor, target_NHW: Tensor, temperature: float) -> Tensor:
    """KL divergence of student and teacher at `temperature` T, mean over the pixels that are not void, times T².

    Source: Hinton et al. 2015 (arXiv:1503.02531). Raises ShapeError when the shapes differ.
    """
    if logits_NKHW.shape != teacher_NKHW.shape:
        raise ShapeError(f"student gives {list(logits_NKHW.shape)}, teacher {list(teacher_NKHW.shape)}")
    counted_NHW = counted(logits_NKHW, target_NHW)
    student, teacher = (
        (without_void(logits, counted_NHW) / temperature).log_softmax(1) for logits in (logits_NKHW, teacher_NKHW)
    )
    divergence_NHW = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return divergence_NHW.sum() / counted_NHW.sum().clamp(min=1) * temperature**2


def class_weights(
    settings: LossSettings, pixels_K: NDArray[np.int64], section: str = FitSettings.SECTION
) -> Tensor | None:
    """The weights [K] that `settings` ask for, given how many training pixels each class has; None: equal.

    "balanced" takes the inverse square root of a class's share, so that a handful of pixels does not dominate. The mean
    is 1 over the classes that occur; a class that never occurs weighs 0. Raises RecipeError when weights and classes
    differ in number, and when there is no pixel to balance.
    """
    place = f"{section}.loss.class_weights"
    if settings.class_weights == "equal":
        return None
    if settings.class_weights == "balanced":
        occurs_K = pixels_K > 0
        if not occurs_K.any():
            raise RecipeError(place, ["nothing to balance: every training mask is void everywhere"])
        rarity_K = np.divide(1.0, np.sqrt(pixels_K), out=np.zeros(len(pixels_K)), where=occurs_K)
        return torch.from_numpy(rarity_K / rarity_K[occurs_K].mean()).float()
    given, classes = len(settings.class_weights), len(pixels_K)
    if given != classes:
        raise RecipeError(place, [f"{given} weights for {classes} classes; give one for each, in order"])
    return torch.tensor(settings.class_weights)
