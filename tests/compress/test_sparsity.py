"""Training with a sparsity penalty: what it adds, that channels shrink, and that the reported loss leaves it out."""

import math
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pytest
import torch
from support.fits import Killed, Pixelwise, Splits, before_each_step, fit, kill_at
from support.fits import splits as small_splits
from support.networks import random_unet
from support.recipes import TINY_SETTINGS
from torch import Tensor, nn

from compress.checkpoint import Checkpoint
from compress.prune.importance import scores_of
from compress.recipe import Recipe
from compress.settings.train import SparsitySettings
from compress.train import state, train
from compress.train.precision import Precision
from compress.train.sparsity import penalty_of
from export.errors import UsageError

Kind = Literal["l1", "bn-scale", "group-lasso"]
KINDS: tuple[Kind, ...] = ("l1", "bn-scale", "group-lasso")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


def unet() -> nn.Module:
    return random_unet(base=4, classes=2)


def fitted(kind: Kind | Literal["none"], splits: Splits, folder: Path, **settings: Any) -> tuple[nn.Module, list[Any]]:
    """A network after some steps, one an epoch, and its history."""
    network = unet()
    penalty = penalty_of(SparsitySettings(kind=kind, weight=0.1), network, 1)
    settings = {"epochs": 10, "batch_size": 8, "learning_rate": 0.03, "ema_decay": 0.0, **settings}
    history = fit(network, splits, folder, penalty=penalty, **settings).history
    return network, history


def scales(network: nn.Module) -> Tensor:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return torch.cat([norm.weight.detach() for norm in norms]).abs()


def norms(network: nn.Module) -> Tensor:
    """The L2 norm of every channel, over all weights that are removed with it."""
    return torch.cat([squares.sqrt() for squares in scores_of(network, channels=1).raw.values()])


def lost_with_a_cut(network: nn.Module) -> float:
    """The mean share of the groups' importance that goes with two fifths of all channels."""
    found = scores_of(network, channels=1)
    return fmean(found.share_of(cut) for cut in found.plan(0.4, 1).cuts)


def kernels(network: nn.Module) -> Tensor:
    """Magnitudes of all weights of convolutions."""
    found = [module.weight.detach().flatten() for module in network.modules() if isinstance(module, nn.Conv2d)]
    return torch.cat(found).abs()


def test_the_penalties_are_what_they_say() -> None:
    network = unet()
    values = {}
    for kind in KINDS:
        penalty = penalty_of(SparsitySettings(kind=kind, weight=0.5), network, 1)
        assert penalty is not None
        values[kind] = penalty(network).detach()
        assert values[kind].dtype == torch.float32
    assert float(values["l1"]) == pytest.approx(0.5 * float(kernels(network).sum()), rel=1e-5)
    assert float(values["bn-scale"]) == pytest.approx(0.5 * float(scales(network).sum()), rel=1e-5)
    assert float(values["group-lasso"]) == pytest.approx(0.5 * float(norms(network).sum()), rel=1e-5)
    assert penalty_of(SparsitySettings(), network, 1) is None


def test_a_channel_that_is_gone_stays_gone() -> None:
    network = unet()
    with torch.no_grad():
        network.get_parameter("stem.0.weight")[1] = 0
        network.get_parameter("stem.1.weight")[1] = 0
        network.get_parameter("stem.3.weight")[:, 1] = 0
    penalty = penalty_of(SparsitySettings(kind="group-lasso", weight=1.0), network, 1)
    assert penalty is not None
    penalty(network).backward()  # type: ignore[no-untyped-call]
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    gradient = network.get_parameter("stem.0.weight").grad
    assert gradient is not None
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_scales_shrink(splits: Splits, tmp_path: Path, precision: Precision) -> None:
    plain, history = fitted("none", splits, tmp_path / "plain", precision=precision)
    sparse, shrinking = fitted("bn-scale", splits, tmp_path / "sparse", precision=precision)
    assert scales(sparse).sum() < 0.9 * scales(plain).sum()
    # The first step reports the same loss, which leaves the penalty out.
    assert history[0]["loss"] == shrinking[0]["loss"]
    assert history[-1]["loss"] != shrinking[-1]["loss"]


def test_single_weights_come_to_nothing(splits: Splits, tmp_path: Path) -> None:
    plain, history = fitted("none", splits, tmp_path / "plain")
    sparse, shrinking = fitted("l1", splits, tmp_path / "sparse")
    small = [float((kernels(network) < 1e-2).float().mean()) for network in (plain, sparse)]
    assert small[1] > 2 * small[0]
    assert history[0]["loss"] == shrinking[0]["loss"]


def test_channels_spread(splits: Splits, tmp_path: Path) -> None:
    plain, history = fitted("none", splits, tmp_path / "plain")
    sparse, shrinking = fitted("group-lasso", splits, tmp_path / "sparse")
    assert norms(sparse).sum() < 0.9 * norms(plain).sum()
    # The weakest channel of a group lies further below its mean.
    weakest = {
        name: [(raw / raw.mean()).min() for raw in scores_of(network, channels=1).raw.values()]
        for name, network in (("plain", plain), ("sparse", sparse))
    }
    assert sum(weakest["sparse"]) < sum(weakest["plain"])
    # So the cut that follows removes less of what the groups are worth.
    assert lost_with_a_cut(sparse) < 0.8 * lost_with_a_cut(plain)
    assert history[0]["loss"] == shrinking[0]["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_ends_with_the_same_bits(
    kind: Kind, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(state, "SHARE_OF_THE_TIME", math.inf)
    whole, history = fitted(kind, splits, tmp_path / "whole", epochs=4)
    with before_each_step(kill_at(3)), pytest.raises(Killed):
        fitted(kind, splits, tmp_path / "killed", epochs=4)
    resumed, again = fitted(kind, splits, tmp_path / "killed", epochs=4)
    assert again == history
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_what_cannot_be_made_sparse_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(UsageError, match=r"no BatchNorm scales the channels of Sequential; set train\.sparsity"):
        penalty_of(SparsitySettings(kind="bn-scale"), network, 1)
    assert penalty_of(SparsitySettings(kind="group-lasso"), network, 1) is not None
    assert penalty_of(SparsitySettings(kind="l1"), Pixelwise(), 1) is not None
    with pytest.raises(UsageError, match="Pixelwise has no channels that can be removed"):
        penalty_of(SparsitySettings(kind="group-lasso"), Pixelwise(), 1)


def test_the_recipe_asks_for_it(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    settings = ["train.epochs=8", "train.sparsity.kind=bn-scale", "train.sparsity.weight=0.05"]
    shrunk = train(discs, tmp_path / "out", Recipe.load(None, [*TINY_SETTINGS, *settings]), init=trained.path)
    assert shrunk.card.recipe["train"]["sparsity"] == {"kind": "bn-scale", "weight": 0.05}
    plain = train(discs, tmp_path / "plain", Recipe.load(None, [*TINY_SETTINGS, settings[0]]), init=trained.path)
    assert scales(shrunk.network()).mean() < 0.97 * scales(plain.network()).mean()
