"""A pretrained encoder stays frozen, weights and statistics, for as long as is asked, and wakes stage by stage."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import OnAnEncoder, Pixelwise, Splits, before_each_step, fit
from support.fits import splits as small_splits
from torch import Tensor, nn

from compress.models import encoders
from compress.settings.prune import DistillSettings
from compress.train.freeze import stages
from export.errors import RecipeError


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


PARTS = ("encoder.stem", "encoder.levels.0", "encoder.levels.1", "head")


def moved(network: nn.Module, splits: Splits, folder: Path, **settings: Any) -> list[str]:
    """A string for each epoch: 1 for each of `PARTS` whose weights or statistics it moved, else 0."""
    seen: list[dict[str, Tensor]] = []

    def look(module: nn.Module, _: Any = None) -> None:
        if module.training:
            seen.append({name: tensor.detach().clone() for name, tensor in module.state_dict().items()})

    network.register_forward_pre_hook(look)
    fit(network, splits, folder, encoder_rate=1.0, **settings)
    look(network.train())

    def word(before: dict[str, Tensor], after: dict[str, Tensor]) -> str:
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        return "".join("01"[any(name.startswith(part) for name in changed)] for part in PARTS)

    return [word(*pair) for pair in pairwise(seen[::2])]  # two steps an epoch


FREEZES: list[tuple[dict[str, int], list[str]]] = [
    ({}, ["1111"] * 5),
    ({"epochs": 2}, ["0001", "0001", "1111", "1111", "1111"]),
    ({"epochs": 1, "stage_epochs": 1}, ["0001", "0011", "0111", "1111", "1111"]),
    ({"epochs": 1, "stage_epochs": 2}, ["0001", "0011", "0011", "0111", "0111"]),
]


@pytest.mark.parametrize(("freeze", "expected"), FREEZES)
def test_stages_wake_when_they_are_asked_to(
    splits: Splits, tmp_path: Path, freeze: dict[str, int], expected: list[str]
) -> None:
    assert moved(OnAnEncoder(), splits, tmp_path / "fit", epochs=5, freeze=freeze) == expected


def test_a_network_without_a_pretrained_encoder_has_nothing_to_freeze(splits: Splits, tmp_path: Path) -> None:
    for network in (Pixelwise(), OnAnEncoder(pretrained=False)):
        with pytest.raises(RecipeError, match="no pretrained encoder"):
            fit(network, splits, tmp_path / "fit", freeze={"epochs": 1})
    with pytest.raises(RecipeError, match=r"recipe prune\.finetune\.freeze\.epochs"):
        fit(Pixelwise(), splits, tmp_path / "fit", freeze={"epochs": 1}, kind=DistillSettings)


def test_rates_by_stage_need_a_pretrained_encoder(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe train\.layer_decay: .*\n.*no pretrained encoder"):
        fit(Pixelwise(), splits, tmp_path / "fit", layer_decay=0.5)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 5), ("efficientnet-lite0", 6)])
def test_every_weight_of_an_encoder_is_in_one_stage(name: str, count: int) -> None:
    encoder = encoders.make(name, 3)
    found = list(stages(encoder))
    assert len(found) == count
    inside = [id(parameter) for parts in found for part in parts for parameter in part.parameters()]
    assert sorted(inside) == sorted(id(parameter) for parameter in encoder.parameters())


def test_stages_of_an_encoder_learn_the_slower_the_nearer_they_are_to_the_image(splits: Splits, tmp_path: Path) -> None:
    network = OnAnEncoder()
    rates: list[list[float]] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        known = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        of_parts = [{known[id(p)] for p in network.get_submodule(part).parameters()} for part in PARTS]
        rates.append([rate for (rate,) in of_parts])  # kernels, biases and norms of a part share a rate

    with before_each_step(look):
        fit(network, splits, tmp_path / "fit", epochs=1, encoder_rate=0.5, layer_decay=0.2)
    for stem, first, second, head in rates:
        assert [stem / head, first / head, second / head] == pytest.approx([0.02, 0.1, 0.5])
