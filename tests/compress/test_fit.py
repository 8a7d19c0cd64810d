"""Gradient descent: parameter groups, clipping, precision, what is validated and kept, and a teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import CPU, Pixelwise, Splits, before_each_step, fit
from support.fits import splits as small_splits
from support.networks import random_unet
from torch import Tensor, nn

from compress.settings.prune import DistillSettings
from compress.train.objective import Teacher
from compress.train.precision import Precision
from compress.train.validation import validate


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


def test_weight_decay_is_for_kernels_alone(splits: Splits, tmp_path: Path) -> None:
    groups: list[tuple[float, set[int]]] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        groups[:] = [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in optimizer.param_groups]

    with before_each_step(look):
        fit(random_unet(base=4, classes=2), splits, tmp_path / "fit", epochs=1, weight_decay=0.3)
    assert groups == [(0.3, {4}), (0.0, {1})]


class OnAnEncoder(nn.Module):
    """Two convolutions with biases; the first is the encoder."""

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.encoder = nn.Conv2d(1, 3, 1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(image))
        return logits


@pytest.mark.parametrize(("pretrained", "rate"), [(True, 0.3), (False, 1.0)])
def test_a_pretrained_encoder_learns_at_its_own_rate(
    splits: Splits, tmp_path: Path, pretrained: bool, rate: float
) -> None:
    network = OnAnEncoder(pretrained=pretrained)
    ratios: list[float] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for kind in ("weight", "bias"):
            head, encoder = (rates[id(network.get_parameter(f"{part}.{kind}"))] for part in ("head", "encoder"))
            ratios.append(encoder / head)

    with before_each_step(look):
        fit(network, splits, tmp_path / "fit", epochs=2, encoder_rate=0.3)
    assert ratios == pytest.approx([rate] * 8)


def test_gradients_are_clipped(splits: Splits, tmp_path: Path) -> None:
    norms: list[float] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    with before_each_step(look):
        fit(random_unet(base=4, classes=2), splits, tmp_path / "fit", epochs=2, clip_norm=1e-3)
    assert max(norms) <= 1e-3 * 1.001


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_it_learns_in_every_precision(splits: Splits, tmp_path: Path, precision: Precision) -> None:
    network = Pixelwise()
    before = validate(network, splits[1], CPU).miou
    fitted = fit(network, splits, tmp_path / "fit", precision=precision, epochs=15)
    assert fitted.miou > max(before, 0.7)
    assert all(tensor.dtype != torch.float16 for tensor in fitted.weights.values())
    losses = [epoch["loss"] for epoch in fitted.history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_convolutions_run_in_the_precision_that_is_asked_for(
    splits: Splits, tmp_path: Path, precision: Precision
) -> None:
    network, seen = Pixelwise(), set()
    network.head.register_forward_hook(lambda module, _, logits: seen.add((module.training, logits.dtype)))
    fit(network, splits, tmp_path / "fit", precision=precision, epochs=1)
    assert seen == {(True, getattr(torch, precision)), (False, torch.float32)}  # validation is always in float32


def test_the_best_weights_are_those_that_were_scored(splits: Splits, tmp_path: Path) -> None:
    fitted = fit(random_unet(base=4, classes=2), splits, tmp_path / "fit", epochs=6, learning_rate=0.02)
    scores = {int(epoch["epoch"]): epoch["miou"] for epoch in fitted.history}
    assert fitted.miou == max(scores.values())
    assert fitted.best_epoch == min(epoch for epoch, miou in scores.items() if miou == fitted.miou)
    again = random_unet(3, base=4, classes=2)
    again.load_state_dict(fitted.weights)
    assert validate(again, splits[1], CPU).miou == pytest.approx(fitted.miou)


@pytest.mark.parametrize(("decay", "averaged"), [(0.0, False), (0.9, True)])
def test_averaged_weights_are_validated_and_saved(splits: Splits, tmp_path: Path, decay: float, averaged: bool) -> None:
    fitted = fit(Pixelwise(), splits, tmp_path / "fit", ema_decay=decay, keep_from=1.0)
    saved = torch.load(tmp_path / "fit" / "training_state.pt", weights_only=True)["stepper"]
    for name in ("head.weight", "norm.running_var"):
        assert torch.equal(fitted.weights[name], saved["average"][name])
        assert torch.equal(fitted.weights[name], saved["network"][name]) != averaged


def test_validation_comes_every_so_often_and_at_the_end(splits: Splits, tmp_path: Path) -> None:
    fitted = fit(Pixelwise(), splits, tmp_path / "fit", epochs=7, validate_every=3)
    assert [int(epoch["epoch"]) for epoch in fitted.history if "miou" in epoch] == [3, 6, 7]
    assert len(fitted.history) == 7


def test_another_seed_trains_differently(splits: Splits, tmp_path: Path) -> None:
    one, other = (fit(Pixelwise(), splits, tmp_path / f"fit{seed}", seed=seed) for seed in (0, 1))
    assert not torch.equal(one.weights["head.weight"], other.weights["head.weight"])


class Constant(nn.Module):
    """Predicts class 1 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([-4.0, 4.0]))

    def forward(self, image: Tensor) -> Tensor:
        return self.bias[None, :, None, None] + 0 * image


@pytest.mark.parametrize(("weight", "follows"), [(1.0, True), (0.0, False)])
def test_a_student_follows_its_teacher_as_much_as_is_asked(
    splits: Splits, tmp_path: Path, weight: float, follows: bool
) -> None:
    teacher = Teacher(Constant(), weight, DistillSettings().temperature)
    fitted = fit(Pixelwise(), splits, tmp_path / "fit", epochs=40, ema_decay=0.0, teacher=teacher)
    student = Pixelwise()
    # The last weights, not the best by mIoU, which would hide the teacher.
    state = torch.load(tmp_path / "fit" / "training_state.pt", weights_only=True)["stepper"]["network"]
    student.load_state_dict(state)
    student.eval()
    ones = student(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)).argmax(1).float().mean()
    assert (ones == 1) == follows
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


@pytest.mark.parametrize(("keep_from", "allowed"), [(0.0, {1, 2, 3, 4, 5, 6}), (0.5, {4, 5, 6}), (1.0, {6})])
def test_the_best_is_looked_for_among_the_later_epochs(
    splits: Splits, tmp_path: Path, keep_from: float, allowed: set[int]
) -> None:
    student = Pixelwise()
    with torch.no_grad():
        student.head.weight.copy_(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1))
    # The student knows the task from the start, and its teacher makes it worse.
    settings: dict[str, Any] = {
        "epochs": 6,
        "learning_rate": 0.6,
        "warmup": 1.0,
        "ema_decay": 0.0,
        "keep_from": keep_from,
    }
    fitted = fit(student, splits, tmp_path / "fit", teacher=Teacher(Constant(), 1.0, 1.0), **settings)
    scores = {int(epoch["epoch"]): epoch["miou"] for epoch in fitted.history}
    assert fitted.best_epoch == max(sorted(allowed), key=scores.__getitem__)
    assert fitted.miou == scores[fitted.best_epoch]
    assert keep_from == 0 or max(scores.values()) > fitted.miou
