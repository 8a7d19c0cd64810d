"""Gradient descent that can be killed: schedule, guard against NaN, best weights, and resuming to the last bit."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.datasets import write_dataset
from support.networks import random_unet
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from compress.data.augment import Augment
from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages, ValidationImages
from compress.recipe import AugmentSettings, DistillSettings, FitSettings
from compress.train import loop
from compress.train.loop import Fit, Fitted, Runtime, Teacher, validate
from compress.train.precision import Precision
from export.errors import WorkFailedError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingImages, ValidationImages]:
    path = write_dataset(
        tmp_path_factory.mktemp("data") / "discs", size=(24, 24), counts={"train": 8, "val": 3, "test": 1}
    )
    dataset = open_dataset(path)
    return TrainingImages(dataset, size=None, crop=None, multiple=8), ValidationImages(dataset, size=None, multiple=8)


class Pixelwise(nn.Module):
    """The least network: grey value, normalised, to two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Conv2d(1, 2, 1)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.zeros_(self.get_parameter("head.bias"))
        self.forwards = 0
        self.broken: Callable[[int], bool] = lambda _: False

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.forwards += 1
            if self.broken(self.forwards):
                image = image * torch.nan
        logits: Tensor = self.head(self.norm(image))
        return logits


def fit(
    network: nn.Module,
    splits: tuple[TrainingImages, ValidationImages],
    folder: Path,
    *,
    precision: Precision = "float32",
    teacher: Teacher | None = None,
    **settings: Any,
) -> Fitted:
    folder.mkdir(exist_ok=True)
    chosen = FitSettings(**{"epochs": 4, "batch_size": 4, "learning_rate": 0.05, "ema_decay": 0.9, **settings})
    augment = Augment(AugmentSettings(flip_vertical=0.5))
    return Fit(network, *splits, chosen, augment, Runtime(CPU, precision), folder, teacher).run("fit")


@contextmanager
def before_each_step(hook: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: hook(optimizer))
    try:
        yield
    finally:
        handle.remove()


class Killed(BaseException):
    """As sudden as a signal."""


def kill_at(step: int) -> Callable[[torch.optim.Optimizer], None]:
    steps = 0

    def hook(_: torch.optim.Optimizer) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Killed

    return hook


@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path, warmup: float
) -> None:
    rates: list[float] = []
    with before_each_step(lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])):
        fit(Pixelwise(), splits, tmp_path / "fit", epochs=10, learning_rate=0.4, warmup=warmup)
    total, rise = 20, max(1, round(20 * warmup))
    assert len(rates) == total

    # The same from torch's own schedulers.
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    linear = lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / rise)
    for step in range(rise):
        assert rates[step] == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        linear.step()
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, total - rise))
    for step in range(rise, total):
        assert rates[step] == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        cosine.step()
    assert max(rates) == pytest.approx(0.4)
    assert rates[0] > 0


def test_weight_decay_is_for_kernels_alone(splits: tuple[TrainingImages, ValidationImages], tmp_path: Path) -> None:
    groups: list[tuple[float, set[int]]] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        groups[:] = [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in optimizer.param_groups]

    with before_each_step(look):
        fit(random_unet(base=4, classes=2), splits, tmp_path / "fit", epochs=1, weight_decay=0.3)
    assert groups == [(0.3, {4}), (0.0, {1})]


def test_gradients_are_clipped(splits: tuple[TrainingImages, ValidationImages], tmp_path: Path) -> None:
    norms: list[float] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    with before_each_step(look):
        fit(random_unet(base=4, classes=2), splits, tmp_path / "fit", epochs=2, clip_norm=1e-3)
    assert max(norms) <= 1e-3 * 1.001


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_it_learns_in_every_precision(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path, precision: Precision
) -> None:
    network = Pixelwise()
    before = validate(network, splits[1], CPU)
    fitted = fit(network, splits, tmp_path / "fit", precision=precision, epochs=15)
    assert fitted.miou > max(before, 0.7)
    assert all(tensor.dtype != torch.float16 for tensor in fitted.weights.values())
    losses = [epoch["loss"] for epoch in fitted.history]
    assert losses[-1] < losses[0]


def test_the_best_weights_are_those_that_were_scored(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path
) -> None:
    fitted = fit(random_unet(base=4, classes=2), splits, tmp_path / "fit", epochs=6, learning_rate=0.02)
    scores = {int(epoch["epoch"]): epoch["miou"] for epoch in fitted.history}
    assert fitted.miou == max(scores.values())
    assert fitted.best_epoch == min(epoch for epoch, miou in scores.items() if miou == fitted.miou)
    again = random_unet(3, base=4, classes=2)
    again.load_state_dict(fitted.weights)
    assert validate(again, splits[1], CPU) == pytest.approx(fitted.miou)


def test_validation_comes_every_so_often_and_at_the_end(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path
) -> None:
    fitted = fit(Pixelwise(), splits, tmp_path / "fit", epochs=7, validate_every=3)
    assert [int(epoch["epoch"]) for epoch in fitted.history if "miou" in epoch] == [3, 6, 7]
    assert len(fitted.history) == 7


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fit_that_was_killed_ends_with_the_same_bits(
    splits: tuple[TrainingImages, ValidationImages],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    precision: Precision,
) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0.0)
    start = random_unet(base=4, classes=2)

    def run(folder: str) -> Fitted:
        return fit(copy.deepcopy(start), splits, tmp_path / folder, precision=precision, learning_rate=0.01)

    whole = run("whole")
    with before_each_step(kill_at(step)), pytest.raises(Killed):
        run("killed")
    if step < 7:  # the second attempt dies as well
        with before_each_step(kill_at(2)), pytest.raises(Killed):
            run("killed")
    resumed = run("killed")
    assert resumed.history == whole.history
    assert (resumed.miou, resumed.best_epoch) == (whole.miou, whole.best_epoch)
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in resumed.weights.items())


def test_a_finished_fit_is_not_run_again(splits: tuple[TrainingImages, ValidationImages], tmp_path: Path) -> None:
    first = fit(Pixelwise(), splits, tmp_path / "fit")
    with before_each_step(kill_at(1)):
        again = fit(Pixelwise(), splits, tmp_path / "fit")
    assert again.history == first.history
    assert all(torch.equal(tensor, first.weights[name]) for name, tensor in again.weights.items())


def test_the_training_state_is_plain_data(splits: tuple[TrainingImages, ValidationImages], tmp_path: Path) -> None:
    fit(Pixelwise(), splits, tmp_path / "fit", precision="float16")
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["training_state.pt"]
    state = torch.load(tmp_path / "fit" / "training_state.pt", weights_only=True)
    assert state["progress"]["epoch"] == 4
    assert state["scaler"]["scale"] > 0


def test_another_seed_trains_differently(splits: tuple[TrainingImages, ValidationImages], tmp_path: Path) -> None:
    one, other = (fit(Pixelwise(), splits, tmp_path / f"fit{seed}", seed=seed) for seed in (0, 1))
    assert not torch.equal(one.weights["head.weight"], other.weights["head.weight"])


def test_a_loss_that_stays_undefined_ends_the_run_and_names_the_files(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Pixelwise()
    network.broken = lambda forward: forward > 3
    with pytest.raises(WorkFailedError) as caught:
        fit(network, splits, tmp_path / "fit", epochs=50)
    assert "not finite in 5 steps in a row" in str(caught.value)
    assert "lower train.learning_rate" in str(caught.value)
    names = {sample for line in str(caught.value).split("last for ")[1].split(";")[:1] for sample in line.split(", ")}
    assert len(names) == 4
    assert names <= {f"{i:04d}" for i in range(8)}
    lines = [line for line in capfd.readouterr().err.splitlines() if "not finite; the step is skipped" in line]
    assert len(lines) == 5
    assert network.forwards == 8


class Steep(torch.autograd.Function):
    """Goes nowhere forward, and backward beyond all numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        out: Tensor = gradients[0] * torch.inf
        return out


class SteepPixelwise(Pixelwise):
    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = Steep.apply(super().forward(image))  # type: ignore[no-untyped-call]
        return out


def test_gradients_that_stay_undefined_end_the_run_too(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path
) -> None:
    network = SteepPixelwise()
    with pytest.raises(WorkFailedError, match="not finite in 5 steps in a row"):
        fit(network, splits, tmp_path / "fit", epochs=50)
    # No step was taken with them.
    assert (network.head.weight == 0.1).all()


def test_a_loss_that_is_undefined_now_and_then_changes_nothing(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path
) -> None:
    network = Pixelwise()
    network.broken = lambda forward: forward % 5 in (1, 2, 3, 4) and forward < 12
    fitted = fit(network, splits, tmp_path / "fit", epochs=12)
    assert network.forwards == 24
    # The statistics of a skipped step are no more worth keeping than its gradients.
    assert all(torch.isfinite(tensor).all() for tensor in fitted.weights.values())
    assert all(math.isfinite(epoch["loss"]) for epoch in fitted.history)
    assert json.dumps(fitted.history, allow_nan=False)
    assert fitted.miou > 0.7


class Constant(nn.Module):
    """Says class 1 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([-4.0, 4.0]))

    def forward(self, image: Tensor) -> Tensor:
        return self.bias[None, :, None, None] + 0 * image


@pytest.mark.parametrize(("weight", "follows"), [(1.0, True), (0.0, False)])
def test_a_student_follows_its_teacher_as_much_as_is_asked(
    splits: tuple[TrainingImages, ValidationImages], tmp_path: Path, weight: float, follows: bool
) -> None:
    teacher = Teacher(Constant(), weight, DistillSettings().temperature)
    fitted = fit(Pixelwise(), splits, tmp_path / "fit", epochs=40, ema_decay=0.0, teacher=teacher)
    student = Pixelwise()
    # The last averaged weights, not the best by mIoU: those would hide the teacher.
    state = torch.load(tmp_path / "fit" / "training_state.pt", weights_only=True)["network"]
    student.load_state_dict(state)
    student.eval()
    ones = student(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)).argmax(1).float().mean()
    assert (ones == 1) == follows
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
