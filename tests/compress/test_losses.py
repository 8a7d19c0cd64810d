"""Losses against definitions written by others; void never counts, in value or in gradient."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score

from compress.train.losses import cross_entropy, distillation, soft_dice
from export.errors import ShapeError
from export.scoring import VOID

Loss = Callable[[Tensor, Tensor], Tensor]


def distilled(temperature: float = 2.0) -> Loss:
    """From a teacher of the same shape that a seed gives."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
        return distillation(logits, teacher, target, temperature)

    return loss


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "soft_dice": soft_dice, "distillation": distilled()}
EVERY = pytest.mark.parametrize("name", LOSSES)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits NKHW and a target NHW with void and, often, absent classes."""
    n, k, h, w = (draw(st.integers(1, high)) for high in (3, 5, 6, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    logits = torch.randn(n, k, h, w, generator=generator) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    present = torch.tensor([*draw(st.sets(st.integers(0, k - 1), min_size=1)), VOID])
    target = present[torch.randint(len(present), (n, h, w), generator=generator)].to(torch.uint8)
    return logits, target


def dice_by_hand(logits: Tensor, target: Tensor) -> float:
    """The formula, pixel lists and loops."""
    probabilities = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    truth = target.reshape(-1)
    counted = [i for i in range(len(truth)) if truth[i] != VOID]
    losses = []
    for k in sorted({int(truth[i]) for i in counted}):
        overlap = sum(float(probabilities[i, k]) for i in counted if truth[i] == k)
        predicted = sum(float(probabilities[i, k]) for i in counted)
        losses.append(1 - 2 * overlap / (predicted + sum(int(truth[i]) == k for i in counted)))
    return sum(losses) / len(losses) if losses else 0.0


@settings(max_examples=50, deadline=None)
@given(cases())
def test_cross_entropy_is_torchs_mean_over_what_is_not_void(case: tuple[Tensor, Tensor]) -> None:
    logits, target = case
    loss = cross_entropy(logits, target)
    if (target == VOID).all():
        assert loss == 0
    else:
        torch.testing.assert_close(loss, F.cross_entropy(logits, target.long(), ignore_index=VOID))


@settings(max_examples=50, deadline=None)
@given(cases())
def test_soft_dice_is_the_formula(case: tuple[Tensor, Tensor]) -> None:
    logits, target = case
    assert float(soft_dice(logits, target)) == pytest.approx(dice_by_hand(logits, target), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_dice_of_a_sure_network_is_torchmetrics_f1(case: tuple[Tensor, Tensor]) -> None:
    logits, target = case
    if logits.shape[1] < 2 or (target == VOID).all():
        return
    guess = logits.argmax(1)
    sure = 200.0 * F.one_hot(guess, logits.shape[1]).permute(0, 3, 1, 2).float()
    scores = multiclass_f1_score(guess, target.long(), num_classes=logits.shape[1], average="none", ignore_index=VOID)
    present = torch.bincount(target[target != VOID].long(), minlength=logits.shape[1]) > 0
    assert float(soft_dice(sure, target)) == pytest.approx(float(1 - scores[present].mean()), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from([1.0, 2.0, 5.0]))
def test_distillation_is_the_divergence_of_two_categoricals(case: tuple[Tensor, Tensor], temperature: float) -> None:
    logits, target = case
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    student_of, teacher_of = (
        torch.distributions.Categorical(logits=x.permute(0, 2, 3, 1) / temperature) for x in (logits, teacher)
    )
    divergence = torch.distributions.kl_divergence(teacher_of, student_of)[target != VOID]
    expected = divergence.mean() * temperature**2 if len(divergence) else torch.tensor(0.0)
    torch.testing.assert_close(distillation(logits, teacher, target, temperature), expected, rtol=1e-4, atol=1e-5)


@EVERY
@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 2**20))
def test_void_never_contributes(name: str, case: tuple[Tensor, Tensor], seed: int) -> None:
    logits, target = case
    void = (target == VOID)[:, None].expand_as(logits)
    noise = 50 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    loss = LOSSES[name]
    torch.testing.assert_close(loss(torch.where(void, noise, logits), target), loss(logits, target))

    logits = logits.clone().requires_grad_(True)
    torch.autograd.backward(loss(logits, target))
    assert logits.grad is not None
    assert not logits.grad[void].any()
    assert torch.isfinite(logits.grad).all()


@EVERY
def test_a_target_that_is_all_void_costs_nothing(name: str) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((2, 4, 4), VOID, dtype=torch.uint8))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@EVERY
def test_what_the_network_is_sure_and_right_about_costs_least(name: str) -> None:
    target = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    right = F.one_hot(target.long(), 3).permute(0, 3, 1, 2).float()
    if name == "distillation":
        teacher = 4 * right
        losses = [float(distillation(x * right, teacher, target, 2.0)) for x in (4.0, 2.0, 0.0, -2.0)]
    else:
        losses = [float(LOSSES[name](x * right, target)) for x in (50.0, 2.0, 0.0, -2.0)]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses == sorted(losses)
    assert losses[-1] > losses[1] + 0.01


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_logits_are_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    """300 thousand pixels overflow float16 and drown in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 512, 600, generator=generator).to(dtype)
    target = torch.randint(0, 2, (1, 512, 600), generator=generator).to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](logits.float(), target))


@EVERY
@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 4, 4), (2, 4)])
def test_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"logits \[2, 3, 4, 4\] and target"):
        LOSSES[name](torch.zeros(2, 3, 4, 4), torch.zeros(shape, dtype=torch.uint8))


def test_a_teacher_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match="student gives"):
        distillation(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), 2.0)
