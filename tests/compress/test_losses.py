"""Losses against definitions written by others; void never counts, in value or in gradient."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kornia.losses import focal_loss
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from compress.settings.fit import LossSettings
from compress.train.losses import SegmentationLoss, class_weights, distillation
from compress.train.pixels import Pixels
from compress.train.regions import lovasz, soft_dice, tversky
from export.errors import RecipeError, ShapeError
from export.scoring import VOID

Loss = Callable[[Tensor, Tensor], Tensor]
Case = tuple[Tensor, Tensor]


def loss_of(**chosen: Any) -> Loss:
    """The loss of a recipe with these settings; class weights are given by number, one for each class of the logits."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        given = chosen.get("class_weights")
        return SegmentationLoss(LossSettings(**chosen), None if given is None else torch.tensor(given))(logits, target)

    return loss


def weighing(**chosen: Any) -> Loss:
    """`loss_of` with class 0 weighing 1, class 1 weighing 2, and so on."""
    return lambda logits, target: loss_of(**chosen, class_weights=tuple(range(1, logits.shape[1] + 1)))(logits, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    return soft_dice(Pixels.of(logits, target))


def distilled(logits: Tensor, target: Tensor) -> Tensor:
    """Distillation from random teacher logits of the same shape."""
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    return distillation(logits, teacher, target, 2.0)


TRAINED: dict[str, Loss] = {
    "cross-entropy": loss_of(dice_weight=0),
    "cross-entropy and dice": loss_of(),
    "weights and smoothing": weighing(dice_weight=0.5, label_smoothing=0.2),
    "focal": loss_of(pixel="focal", dice_weight=0),
    "ohem": loss_of(pixel="ohem", dice_weight=0, ohem_threshold=0.3, ohem_share=0.4),
    "ohem, weights and smoothing": weighing(pixel="ohem", dice_weight=0, ohem_share=0.4, label_smoothing=0.2),
    "tversky": loss_of(dice_weight=0, tversky_weight=1.0),
    "lovasz": loss_of(dice_weight=0, lovasz_weight=1.0),
    "all": weighing(pixel="focal", focal_gamma=0.5, label_smoothing=0.1, tversky_weight=0.3, lovasz_weight=0.7),
}
LOSSES: dict[str, Loss] = {**TRAINED, "distillation": distilled}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
EVERY_TRAINED = pytest.mark.parametrize("loss", TRAINED.values(), ids=list(TRAINED))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Logits NKHW and a target NHW with void and, often, absent classes."""
    n, k, h, w = (draw(st.integers(1, high)) for high in (3, 5, 6, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    logits = torch.randn(n, k, h, w, generator=generator) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    present = torch.tensor([*draw(st.sets(st.integers(0, k - 1), min_size=1)), VOID])
    target = present[torch.randint(len(present), (n, h, w), generator=generator)].to(torch.uint8)
    return logits, target


WEIGHTS = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=5, max_size=5)
SHARES = st.sampled_from([0.0, 0.1, 0.9])
GAMMAS = st.sampled_from([0.5, 1.0, 2.0, 5.0])


def dice_by_hand(logits: Tensor, target: Tensor) -> float:
    """The formula, in plain loops over lists of pixels."""
    probabilities = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    truth = target.reshape(-1)
    counted = [i for i in range(len(truth)) if truth[i] != VOID]
    losses = []
    for k in sorted({int(truth[i]) for i in counted}):
        overlap = sum(float(probabilities[i, k]) for i in counted if truth[i] == k)
        predicted = sum(float(probabilities[i, k]) for i in counted)
        losses.append(1 - 2 * overlap / (predicted + sum(int(truth[i]) == k for i in counted)))
    return sum(losses) / len(losses) if losses else 0.0


@settings(max_examples=80)
@given(cases(), WEIGHTS, SHARES)
def test_cross_entropy_is_torchs_own(case: Case, weights: list[float], smoothing: float) -> None:
    logits, target = case
    given_K = torch.tensor(weights[: logits.shape[1]])
    loss = SegmentationLoss(LossSettings(dice_weight=0, label_smoothing=smoothing), given_K)(logits, target)
    if given_K[target[target != VOID].long()].sum() == 0:
        assert loss == 0
    else:
        expected = F.cross_entropy(logits, target.long(), given_K, ignore_index=VOID, label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)


@settings(max_examples=80)
@given(cases(), WEIGHTS, GAMMAS)
def test_focal_loss_is_kornias(case: Case, weights: list[float], gamma: float) -> None:
    logits, target = case
    given_K = torch.tensor(weights[: logits.shape[1]])
    total = given_K[target[target != VOID].long()].sum()
    assume(total > 0)
    # kornia's mean divides by the number of all pixels, void included.
    costs = focal_loss(logits, target.long(), None, gamma, "none", given_K, ignore_index=VOID)
    loss = SegmentationLoss(LossSettings(pixel="focal", focal_gamma=gamma, dice_weight=0), given_K)(logits, target)
    torch.testing.assert_close(loss, costs.sum() / total, rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(cases(), SHARES)
def test_focal_loss_without_focus_is_cross_entropy(case: Case, smoothing: float) -> None:
    plain = weighing(label_smoothing=smoothing)(*case)
    assert torch.equal(weighing(label_smoothing=smoothing, pixel="focal", focal_gamma=0)(*case), plain)


@settings(max_examples=20)
@given(cases(), GAMMAS)
def test_focus_and_smoothing_go_together(case: Case, gamma: float) -> None:
    logits, target = case
    assume((target != VOID).any())
    costs = F.cross_entropy(logits, target.long(), ignore_index=VOID, label_smoothing=0.3, reduction="none")
    right = logits.softmax(1).gather(1, target.long().clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
    expected = ((1 - right) ** gamma * costs)[target != VOID].mean()
    loss = loss_of(pixel="focal", focal_gamma=gamma, label_smoothing=0.3, dice_weight=0)(logits, target)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)


@settings(max_examples=50)
@given(cases())
def test_soft_dice_is_the_formula(case: Case) -> None:
    assert float(dice(*case)) == pytest.approx(dice_by_hand(*case), abs=1e-5)


@settings(max_examples=30)
@given(cases())
def test_dice_of_a_sure_network_is_torchmetrics_f1(case: Case) -> None:
    logits, target = case
    assume(logits.shape[1] > 1 and (target != VOID).any())
    guess = logits.argmax(1)
    sure = 200.0 * F.one_hot(guess, logits.shape[1]).permute(0, 3, 1, 2).float()
    scores = multiclass_f1_score(guess, target.long(), num_classes=logits.shape[1], average="none", ignore_index=VOID)
    present = torch.bincount(target[target != VOID].long(), minlength=logits.shape[1]) > 0
    assert float(dice(sure, target)) == pytest.approx(float(1 - scores[present].mean()), abs=1e-5)


@settings(max_examples=20)
@given(cases())
def test_a_class_that_nobody_sees_leaves_dice_alone(case: Case) -> None:
    logits, target = case
    unseen = torch.full_like(logits[:, :1], -1e4)
    torch.testing.assert_close(dice(torch.cat([logits, unseen], 1), target), dice(logits, target))


@settings(max_examples=20)
@given(cases(), st.sampled_from([0.0, 0.5, 3.0]))
def test_dice_is_added_with_its_weight(case: Case, weight: float) -> None:
    expected = loss_of(dice_weight=0)(*case) + weight * dice(*case)
    torch.testing.assert_close(loss_of(dice_weight=weight)(*case), expected)


@settings(max_examples=50)
@given(cases(), st.sampled_from([0.05, 0.4, 0.9]), st.sampled_from([0.0, 0.3, 1.0]))
def test_ohem_is_cross_entropy_of_the_pixels_that_are_hard(case: Case, threshold: float, share: float) -> None:
    logits, target = case
    assume((target != VOID).any())
    log_p = logits.log_softmax(1).gather(1, target.long().clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
    surprise = sorted((-log_p[target != VOID]).tolist(), reverse=True)
    least = max(1, math.ceil(share * len(surprise)))
    hard = [cost for cost in surprise if cost >= min(surprise[least - 1], -math.log(threshold))]
    loss = loss_of(pixel="ohem", ohem_threshold=threshold, ohem_share=share, dice_weight=0)(logits, target)
    assert float(loss) == pytest.approx(sum(hard) / len(hard), rel=1e-4, abs=1e-6)


@settings(max_examples=20)
@given(cases(), SHARES)
@pytest.mark.parametrize("all_of_them", [{"ohem_threshold": 1.0}, {"ohem_share": 1.0}])
def test_ohem_of_all_pixels_is_cross_entropy(all_of_them: dict[str, float], case: Case, smoothing: float) -> None:
    plain = weighing(label_smoothing=smoothing)(*case)
    torch.testing.assert_close(weighing(label_smoothing=smoothing, pixel="ohem", **all_of_them)(*case), plain)


def test_ohem_looks_where_the_network_is_wrong() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 0] = 9.0
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[0, 0, 0], target[0, 3, 3] = 1, VOID
    logits.requires_grad_(True)
    loss = loss_of(pixel="ohem", ohem_share=0.0, dice_weight=0)(logits, target)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(9.0, abs=1e-3)
    assert logits.grad is not None
    assert logits.grad[0].any(0).nonzero().tolist() == [[0, 0]]


@settings(max_examples=30)
@given(cases(), st.sampled_from([0.2, 0.7]))
def test_tversky_is_the_formula(case: Case, missed: float) -> None:
    logits, target = case
    losses = []
    for k in sorted(set(target[target != VOID].tolist())):
        truth = (target == k).double()
        p = logits.double().softmax(1)[:, k] * (target != VOID)
        hits, misses, alarms = (p * truth).sum(), ((1 - p) * truth).sum(), (p * (1 - truth)).sum()
        losses.append(float(1 - hits / (hits + missed * misses + (1 - missed) * alarms)))
    expected = sum(losses) / len(losses) if losses else 0.0
    assert float(tversky(Pixels.of(logits, target), missed)) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50)
@given(cases())
def test_lovasz_is_the_extension_of_what_iou_loses(case: Case) -> None:
    """By its definition over sets: each pixel's error times the IoU lost when that pixel is wrong as well."""
    logits, target = case
    pixels = Pixels.of(logits, target)
    probabilities = logits.double().softmax(1)
    losses = []
    for k in sorted(set(target[target != VOID].tolist())):
        errors = ((target == k).double() - probabilities[:, k]).abs()[target != VOID].tolist()
        truth = {i for i, label in enumerate(target[target != VOID].tolist()) if label == k}
        wrong: set[int] = set()
        loss, lost = 0.0, 0.0
        for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
            wrong.add(i)
            before, lost = lost, len(wrong) / len(truth | wrong)
            loss += errors[i] * (lost - before)
        losses.append(loss)
    assert float(lovasz(pixels)) == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-5)


@settings(max_examples=30)
@given(cases())
def test_lovasz_of_a_sure_network_is_torchmetrics_iou(case: Case) -> None:
    logits, target = case
    assume(logits.shape[1] > 1 and (target != VOID).any())
    guess = logits.argmax(1)
    sure = 200.0 * F.one_hot(guess, logits.shape[1]).permute(0, 3, 1, 2).float()
    iou = multiclass_jaccard_index(guess, target.long(), logits.shape[1], average="none", ignore_index=VOID)
    present = torch.bincount(target[target != VOID].long(), minlength=logits.shape[1]) > 0
    assert float(lovasz(Pixels.of(sure, target))) == pytest.approx(float(1 - iou[present].mean()), abs=1e-5)


@settings(max_examples=50)
@given(cases(), st.sampled_from([1.0, 2.0, 5.0]))
def test_distillation_is_the_divergence_of_two_categoricals(case: Case, temperature: float) -> None:
    logits, target = case
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    student_of, teacher_of = (
        # In float64: torch gives infinity where the student's probability is too small for float32.
        torch.distributions.Categorical(logits=x.double().permute(0, 2, 3, 1) / temperature)
        for x in (logits, teacher)
    )
    divergence = torch.distributions.kl_divergence(teacher_of, student_of)[target != VOID]
    expected = divergence.mean().float() * temperature**2 if len(divergence) else torch.tensor(0.0)
    torch.testing.assert_close(distillation(logits, teacher, target, temperature), expected, rtol=1e-4, atol=1e-5)


@EVERY
@settings(max_examples=30)
@given(case=cases(), noise=st.sampled_from([50.0, torch.inf, torch.nan]))
def test_void_never_contributes(loss: Loss, case: Case, noise: float) -> None:
    logits, target = case
    void = (target == VOID)[:, None].expand_as(logits)
    noisy = torch.where(void, torch.full_like(logits, noise), logits).requires_grad_(True)
    value = loss(noisy, target)
    torch.testing.assert_close(value, loss(logits, target))
    torch.autograd.backward(value)
    assert noisy.grad is not None
    assert not noisy.grad[void].any()
    assert torch.isfinite(noisy.grad).all()


@EVERY
def test_a_target_that_is_all_void_costs_nothing(loss: Loss) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), VOID, dtype=torch.uint8))
    torch.autograd.backward(value)
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@EVERY_TRAINED
@settings(max_examples=20)
@given(case=cases(), pad=st.tuples(*[st.integers(0, 3)] * 4))
def test_padding_with_void_changes_nothing(loss: Loss, case: Case, pad: tuple[int, int, int, int]) -> None:
    logits, target = case
    padded = loss(F.pad(logits, pad, value=7.0), F.pad(target, pad, value=VOID))
    torch.testing.assert_close(padded, loss(logits, target))


@EVERY_TRAINED
@settings(max_examples=20)
@given(case=cases(), seed=st.integers(0, 2**20))
def test_where_a_pixel_is_does_not_matter(loss: Loss, case: Case, seed: int) -> None:
    logits, target = case
    n, k, h, w = logits.shape
    order = torch.randperm(n * h * w, generator=torch.Generator().manual_seed(seed))
    moved = logits.permute(1, 0, 2, 3).reshape(k, -1)[:, order].reshape(k, n, h, w).permute(1, 0, 2, 3)
    torch.testing.assert_close(loss(moved, target.reshape(-1)[order].reshape(n, h, w)), loss(logits, target))


@pytest.mark.parametrize("pixel", ["cross-entropy", "focal", "ohem"])
@settings(max_examples=20)
@given(case=cases(), seed=st.integers(0, 2**20))
def test_what_number_a_class_has_does_not_matter(pixel: str, case: Case, seed: int) -> None:
    logits, target = case
    classes = logits.shape[1]
    weights_K = torch.arange(1.0, classes + 1)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    renamed = torch.arange(256, dtype=torch.uint8)
    renamed[order] = torch.arange(classes, dtype=torch.uint8)
    chosen = LossSettings.model_validate(
        {"pixel": pixel, "label_smoothing": 0.1, "tversky_weight": 1, "lovasz_weight": 1}
    )
    torch.testing.assert_close(
        SegmentationLoss(chosen, weights_K[order])(logits[:, order], renamed[target.long()]),
        SegmentationLoss(chosen, weights_K)(logits, target),
    )


@EVERY_TRAINED
def test_gradients_are_those_of_finite_differences(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, VOID])[torch.randint(3, (2, 3, 2), generator=generator)].to(torch.uint8)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@EVERY
def test_what_the_network_is_sure_and_right_about_costs_least(loss: Loss) -> None:
    target = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    right = F.one_hot(target.long(), 3).permute(0, 3, 1, 2).float()
    if loss is distilled:
        losses = [float(distillation(x * right, 2 * right, target, 2.0)) for x in (2.0, 1.0, 0.0, -2.0)]
    else:
        losses = [float(loss(x * right, target)) for x in (2.0, 1.0, 0.0, -2.0)]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.01


@EVERY_TRAINED
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_huge_logits_have_a_loss_and_a_gradient(loss: Loss, size: float) -> None:
    """Sure and right, then sure and wrong: probabilities of exactly one and zero."""
    logits = torch.tensor([[[[size, -size, 0.0]], [[-size, size, 0.0]]]], requires_grad=True)
    for target in ([[[0, 1, 0]]], [[[1, 0, VOID]]]):
        logits.grad = None
        value = loss(logits, torch.tensor(target, dtype=torch.uint8))
        torch.autograd.backward(value)
        assert torch.isfinite(value)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_logits_are_summed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    """A sum over 300 thousand pixels overflows float16, and bfloat16 is too coarse for it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 512, 600, generator=generator).to(dtype)
    target = torch.randint(0, 2, (1, 512, 600), generator=generator).to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), target))


@EVERY
@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 4, 4), (2, 4)])
def test_another_shape_is_refused(loss: Loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"logits \[2, 3, 4, 4\] and target"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(shape, dtype=torch.uint8))


def test_a_teacher_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match="student gives"):
        distillation(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), 2.0)


def test_equal_weights_are_none_and_given_ones_are_taken_as_they_are() -> None:
    pixels = np.array([1, 2, 3])
    assert class_weights(LossSettings(), pixels) is None
    given = class_weights(LossSettings(class_weights=(0.5, 0, 7)), pixels)
    assert given is not None
    assert given.tolist() == [0.5, 0, 7]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8).filter(any))
def test_balanced_weights_fall_with_the_square_root_of_the_share(pixels: list[int]) -> None:
    counts = np.array(pixels, dtype=np.int64)
    balanced = class_weights(LossSettings(class_weights="balanced"), counts)
    assert balanced is not None
    weights, occurs = balanced.double().numpy(), counts > 0
    assert (weights[~occurs] == 0).all()
    assert weights[occurs].mean() == pytest.approx(1)
    pull = weights[occurs] * np.sqrt(counts[occurs])
    np.testing.assert_allclose(pull, pull[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "pixels", "message"),
    [
        ((1.0, 2.0), [5, 5, 5], "2 weights for 3 classes; give one for each"),
        ((1.0, 2.0, 3.0), [5, 5], "3 weights for 2 classes"),
        ("balanced", [0, 0], "every training mask is void everywhere"),
    ],
)
def test_weights_that_fit_no_class_are_refused(chosen: Any, pixels: list[int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        class_weights(LossSettings(class_weights=chosen), np.array(pixels))
