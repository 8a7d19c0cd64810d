"""How a training ends: early when nothing improves any more, and with the mean of its last epochs."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import CPU, Pixelwise, Splits, before_each_step, fit
from support.fits import splits as small_splits
from torch import Tensor, nn

from compress.train.batchnorm import reestimate
from compress.train.validation import validate
from export.metrics import Metrics


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


def mean_of_epochs(network: nn.Module, splits: Splits, folder: Path, first: int, **settings: Any) -> dict[str, Tensor]:
    """The mean of the weights that `network` has at the end of each epoch from `first` on."""
    seen: list[dict[str, Tensor]] = []

    def look(_: torch.optim.Optimizer) -> None:
        seen.append({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})

    with before_each_step(look):
        fit(network, splits, folder, **settings)
    look(torch.optim.SGD(network.parameters()))
    # The weights before an epoch's first step are those at the end of the previous epoch; each has two steps.
    ends = seen[2::2][first - 1 :]
    return {name: torch.stack([end[name].float() for end in ends]).mean(0) for name in ends[0]}


def test_the_average_of_the_last_epochs_is_judged_with_statistics_of_its_own(splits: Splits, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 6, "swa": {"start": 0.5, "rate": 1.0}, "batch_size": 4}
    mean = mean_of_epochs(Pixelwise(), splits, tmp_path / "seen", 4, **settings)
    fitted = fit(Pixelwise(), splits, tmp_path / "fit", **settings)

    network = Pixelwise()
    network.load_state_dict(mean)
    before = validate(network, splits[1], CPU).miou
    reestimate(network, splits[0], batch_size=4)
    figure = validate(network, splits[1], CPU).miou
    assert figure != before
    assert fitted.history[-1]["swa"]["miou"] == pytest.approx(figure)
    saved = torch.load(tmp_path / "fit" / "training_state.pt", weights_only=True)["swa"]
    torch.testing.assert_close(saved["head.weight"], mean["head.weight"])
    assert saved["steps"] == 3


class AtThreshold(nn.Module):
    """Separates the classes at a threshold; between 0.5 and 1 it finds nearly all of the discs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.threshold = nn.Parameter(torch.tensor(0.0))

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(image) - self.threshold
        return torch.cat([-x, x], 1)


class InARow(nn.Module):
    """Normalises the pixels of an image as one row, as parts of a user's own network may."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(image.flatten(2)).reshape(image.shape)
        return torch.cat([-x, x], 1)


def test_statistics_of_every_kind_of_batch_norm_are_taken_again(splits: Splits) -> None:
    networks = InARow(), AtThreshold()
    for network in networks:
        reestimate(network, splits[0])
    in_a_row, plain = (dict(network.norm.named_buffers()) for network in networks)
    torch.testing.assert_close(in_a_row, plain)


@pytest.mark.parametrize(("ends", "wins"), [((-1.0, 2.0), True), ((0.5, 3.0), False)])
def test_the_average_is_taken_where_it_is_better_than_every_epoch(
    splits: Splits, tmp_path: Path, ends: tuple[float, float], wins: bool
) -> None:
    """`ends` are the thresholds at the end of the odd and of the even epochs: on both sides of a good one, or one of
    them good."""
    network, steps = AtThreshold(), itertools.count()

    def move(_: torch.optim.Optimizer) -> None:
        network.threshold.data.fill_(ends[next(steps) // 2 % 2])

    with before_each_step(move):
        fitted = fit(network, splits, tmp_path / "fit", learning_rate=1e-6, ema_decay=0.0, swa={"start": 0.5})
    of_epochs = max(epoch["miou"] for epoch in fitted.history)
    of_average = fitted.history[-1]["swa"]["miou"]
    assert (of_average > of_epochs) == wins
    assert fitted.averaged == fitted.figures()["averaged"] == wins
    assert fitted.miou == max(of_epochs, of_average)
    assert float(fitted.weights["threshold"]) == pytest.approx(sum(ends) / 2 if wins else ends[0], abs=1e-4)
    again = AtThreshold()
    again.load_state_dict(fitted.weights)
    assert validate(again, splits[1], CPU).miou == pytest.approx(fitted.miou)


def test_whether_the_average_won_is_told(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for miou, wins in ((2.0, True), (-2.0, False)):
        with monkeypatch.context() as patch:
            as_if = partial(patch.setattr, Metrics, "miou", miou)
            patch.setattr("compress.train.loop.reestimate", lambda *_, then=as_if, **__: then())
            fitted = fit(Pixelwise(), splits, tmp_path / str(miou), swa={"start": 0.5})
        assert fitted.averaged == fitted.figures()["averaged"] == wins
        assert (fitted.miou == miou) == wins


def test_a_training_without_averaging_has_none(splits: Splits, tmp_path: Path) -> None:
    fitted = fit(Pixelwise(), splits, tmp_path / "fit")
    assert "swa" not in fitted.history[-1]
    assert not fitted.averaged


class Stuck(nn.Module):
    """Predicts the same whatever it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.cat([torch.ones_like(image), -torch.ones_like(image)], 1)
        return logits + 0 * self.bias[None, :, None, None]


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({}, 12),
        ({"patience": 3}, 4),
        ({"patience": 3, "validate_every": 2}, 8),
        ({"patience": 3, "keep_from": 0.5}, 10),
        ({"patience": 20}, 12),
        ({"patience": 3, "swa": {"start": 0.5}}, 9),
        ({"patience": 3, "swa": {"start": 0.25}, "keep_from": 0.5}, 10),
    ],
)
def test_patience_counts_validations_without_a_better_epoch(
    splits: Splits, tmp_path: Path, settings: dict[str, Any], epochs: int, capfd: pytest.CaptureFixture[str]
) -> None:
    fitted = fit(Stuck(), splits, tmp_path / "fit", epochs=12, **settings)
    assert len(fitted.history) == epochs
    assert (f"stopped after epoch {epochs} of 12" in capfd.readouterr().err) == (epochs < 12)
    assert fitted.weights.keys() == {"bias"}


def test_what_was_stopped_is_not_gone_on_with(splits: Splits, tmp_path: Path) -> None:
    first = fit(Stuck(), splits, tmp_path / "fit", epochs=12, patience=2)
    steps: list[int] = []
    with before_each_step(lambda _: steps.append(1)):
        again = fit(Stuck(), splits, tmp_path / "fit", epochs=12, patience=2)
    assert not steps
    assert again.history == first.history
