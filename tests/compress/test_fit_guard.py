"""A step whose loss or gradient is not finite changes nothing; a training of such steps alone says what to do."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import Pixelwise, Splits, before_each_step, fit
from support.fits import splits as small_splits
from torch import Tensor

from compress.settings.fit import FitSettings
from compress.settings.prune import DistillSettings
from compress.settings.quantize import LearnSettings
from compress.train.state import STATE
from export.errors import RecipeError, WorkFailedError


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


def test_a_loss_that_stays_undefined_ends_the_run_and_names_the_files(
    splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Pixelwise()
    network.broken = lambda forward: forward > 3
    with pytest.raises(WorkFailedError) as caught:
        fit(network, splits, tmp_path / "fit", epochs=50)
    assert "not finite in 5 steps in a row" in str(caught.value)
    assert str(caught.value).endswith("; lower train.learning_rate")  # it is float32 already
    names = {sample for line in str(caught.value).split("last for ")[1].split(";")[:1] for sample in line.split(", ")}
    assert len(names) == 4
    assert names <= {f"{i:04d}" for i in range(8)}
    lines = [line for line in capfd.readouterr().err.splitlines() if "not finite; the step is skipped" in line]
    assert len(lines) == 5
    assert network.forwards == 8


@pytest.mark.parametrize(
    ("kind", "section"), [(DistillSettings, "prune.finetune"), (LearnSettings, "quantize.finetune")]
)
def test_what_is_told_names_the_section_that_the_settings_stand_in(
    splits: Splits, tmp_path: Path, kind: type[FitSettings], section: str
) -> None:
    network = Pixelwise()
    network.broken = lambda _: True
    with pytest.raises(WorkFailedError, match=rf"lower {section}\.learning_rate"):
        fit(network, splits, tmp_path / "fit", epochs=50, kind=kind)
    with pytest.raises(RecipeError, match=rf"recipe {section}\.loss\.class_weights"):
        fit(network, splits, tmp_path / "fit", kind=kind, loss={"class_weights": [1.0]})


class Steep(torch.autograd.Function):
    """The identity forward, and infinite gradients backward."""

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


def test_gradients_that_stay_undefined_end_the_run_too(splits: Splits, tmp_path: Path) -> None:
    network = SteepPixelwise()
    with pytest.raises(WorkFailedError, match="not finite in 5 steps in a row"):
        fit(network, splits, tmp_path / "fit", epochs=50)
    # No step was taken with them.
    assert (network.head.weight == 0.1).all()


def test_a_loss_that_is_undefined_now_and_then_changes_nothing(splits: Splits, tmp_path: Path) -> None:
    network = Pixelwise()
    network.broken = lambda forward: forward % 5 in (1, 2, 3, 4) and forward < 12
    fitted = fit(network, splits, tmp_path / "fit", epochs=12)
    assert network.forwards == 24
    # The statistics of a skipped step are discarded like its gradients.
    assert all(torch.isfinite(tensor).all() for tensor in fitted.weights.values())
    # An epoch in which no step was taken has no loss.
    assert [epoch["loss"] is None for epoch in fitted.history] == [epoch["skipped"] == 2 for epoch in fitted.history]
    assert fitted.history[0]["loss"] is fitted.history[0]["gradient_norm"] is None
    assert all(epoch["loss"] is None or math.isfinite(epoch["loss"]) for epoch in fitted.history)
    assert json.dumps(fitted.history, allow_nan=False)
    assert fitted.miou > 0.7


def test_a_skipped_step_leaves_no_trace(splits: Splits, tmp_path: Path) -> None:
    network = Pixelwise()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.broken = lambda _: True
    fit(network, splits, tmp_path / "fit", epochs=2)
    saved = torch.load(tmp_path / "fit" / STATE, weights_only=True)["stepper"]
    assert saved["optimizer"]["state"] == {}
    assert saved["average"]["steps"] == 0
    for name, tensor in before.items():
        assert torch.equal(saved["network"][name], tensor), name


class Overflowing(Pixelwise):
    """The gradients of its first `overflows` passes are infinite."""

    def __init__(self, overflows: float) -> None:
        super().__init__()
        self.overflows = overflows

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        if self.training and self.forwards <= self.overflows:
            logits = Steep.apply(logits)  # type: ignore[no-untyped-call]
        return logits


def test_in_float16_the_scale_is_found_by_steps_that_change_nothing(
    splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network, taken = Overflowing(3), []
    statistics: list[int] = []

    def look(_: torch.optim.Optimizer) -> None:
        taken.append(1)
        statistics.append(int(network.get_buffer("norm.num_batches_tracked")))

    with before_each_step(look):
        fitted = fit(network, splits, tmp_path / "fit", precision="float16")
    assert len(taken) == 8 - 3
    assert statistics == [1, 2, 3, 4, 5]
    saved = torch.load(tmp_path / "fit" / STATE, weights_only=True)["stepper"]
    assert saved["scaler"]["scale"] == 65536 / 2**3
    assert saved["average"]["steps"] == 5
    assert fitted.history[0]["loss"] is None
    assert all(math.isfinite(epoch["loss"]) for epoch in fitted.history[1:])
    said = [line for line in capfd.readouterr().err.splitlines() if "beyond float16" in line]
    assert [line.split("scaled by ")[1].split()[0] for line in said] == ["32768", "16384", "8192"]


def test_a_scale_that_collapses_ends_the_run(splits: Splits, tmp_path: Path) -> None:
    network = Overflowing(math.inf)
    with pytest.raises(WorkFailedError, match=r"set train\.precision=bfloat16 or float32"):
        fit(network, splits, tmp_path / "fit", precision="float16", epochs=50)
    assert (network.head.weight == 0.1).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_is_scaled_but_float16(splits: Splits, tmp_path: Path, precision: Any) -> None:
    fit(Pixelwise(), splits, tmp_path / "fit", precision=precision, epochs=1)
    assert torch.load(tmp_path / "fit" / STATE, weights_only=True)["stepper"]["scaler"] == {}
