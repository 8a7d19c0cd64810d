"""A user's own augmentation, loss and schedule take effect, and what is wrong with them is reported with its place."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.fits import Pixelwise, Splits, before_each_step, fit
from support.fits import splits as small_splits

from compress.recipe import Recipe
from compress.settings.augment import AugmentSettings
from compress.settings.fit import FitSettings, LossSettings
from compress.train import train
from compress.train.losses import SegmentationLoss
from compress.train.own import sources
from export.errors import RecipeError
from export.files import sha256_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_parts.py"
NOTHING: dict[str, Any] = {
    **{"flip_horizontal": 0.0, "rotate_degrees": 0.0, "scale": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0}
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


def written(folder: Path, code: str) -> str:
    """Write `code` to a file; returns the name of its function `part`."""
    (folder / "parts.py").write_text(code)
    return f"{folder / 'parts.py'}:part"


def test_a_loss_of_ones_own_is_added_with_its_weight(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(0, 3, (2, 8, 8), generator=generator).to(torch.uint8)
    target[0, 0, :3] = 255
    name = written(
        tmp_path,
        "import torch.nn.functional as F\n"
        "def part(logits, target): return F.multi_margin_loss(*flat(logits, target))\n"
        "def flat(logits, target):\n"
        "    known = target != 255\n"
        "    return logits.permute(0, 2, 3, 1)[known], target[known]\n",
    )
    loss = SegmentationLoss(LossSettings(pixel="none", dice_weight=0, own=name, own_weight=2.0))(logits, target)
    known = target != 255
    expected = 2 * F.multi_margin_loss(logits.permute(0, 2, 3, 1)[known], target[known].long())
    torch.testing.assert_close(loss, expected)
    logits[0, :, 0, 0] = torch.nan  # a void pixel, which reaches no loss
    beside = SegmentationLoss(LossSettings(dice_weight=0, own=name))(logits, target)
    torch.testing.assert_close(beside, expected / 2 + F.cross_entropy(logits, target.long(), ignore_index=255))


def test_a_schedule_of_ones_own_makes_every_rate(splits: Splits, tmp_path: Path) -> None:
    name = written(tmp_path, "def part(step, steps): return (step + 1) / steps\n")
    rates: list[float] = []
    with before_each_step(lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])):
        fit(Pixelwise(), splits, tmp_path / "fit", learning_rate=0.8, schedule={"kind": name})
    assert rates == pytest.approx([0.1 * (step + 1) for step in range(8)])


def test_a_schedule_may_count_as_numpy_does(splits: Splits, tmp_path: Path) -> None:
    name = written(tmp_path, "import numpy as np\ndef part(step, steps): return np.float32(0.5)\n")
    rates: list[float] = []
    with before_each_step(lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])):
        fit(Pixelwise(), splits, tmp_path / "fit", learning_rate=0.8, schedule={"kind": name})
    assert rates == [0.4] * 8


def test_a_loss_of_ones_own_may_find_nothing_in_a_batch(splits: Splits, tmp_path: Path) -> None:
    """For example a loss of a class that is absent, even as the only loss."""
    name = written(tmp_path, "def part(logits, target): return logits.new_zeros(())\n")
    fitted = fit(Pixelwise(), splits, tmp_path / "fit", loss={"pixel": "none", "dice_weight": 0, "own": name})
    assert {epoch["loss"] for epoch in fitted.history} == {0.0}


def test_an_augmentation_of_ones_own_is_what_the_network_sees(splits: Splits, tmp_path: Path) -> None:
    name = written(tmp_path, "def part(images, masks): return images * 0 + 0.25, masks | 255\n")
    network, seen = Pixelwise(), set()
    network.register_forward_pre_hook(
        lambda module, given: seen.update(given[0].flatten().tolist()) if module.training else None
    )
    fitted = fit(network, splits, tmp_path / "fit", epochs=2, augment=AugmentSettings(own=name, **NOTHING))
    assert seen == {0.25}
    assert {epoch["loss"] for epoch in fitted.history} == {0.0}  # void everywhere


WRONG = {
    "no such function": ("loss", "def other(): pass\n", "has no 'part'"),
    "no file": ("loss", None, "no such file"),
    "not a scalar": ("loss", "def part(logits, target): return logits\n", "it must be a scalar tensor of floats"),
    "not a tensor": ("loss", "def part(logits, target): return 1.0\n", "of type float"),
    "a loss that fails": ("loss", "def part(logits, target): return 1 / 0\n", "ZeroDivisionError.*parts.py:1"),
    "without a gradient": (
        "loss",
        "def part(logits, target): return logits.detach().exp().mean()\n",
        "nothing to minimise",
    ),
    "a rate below zero": ("schedule", "def part(step, steps): return -1\n", "for step 0 of 8 it returns -1"),
    "no rate": ("schedule", "def part(step, steps): return None\n", "a number of at least 0"),
    "no pair": ("augment", "def part(images, masks): return images\n", "does not return a pair of tensors"),
    "another size": ("augment", "def part(images, masks): return images[..., :8], masks\n", "it must return images"),
    "another class": (
        "augment",
        "def part(images, masks): return images, masks * 0 + 7\n",
        "masks hold 7.* 0 to 1, and 255",
    ),
    "another type": ("augment", "def part(images, masks): return images, masks.long()\n", "torch.int64"),
}


@pytest.mark.parametrize(("part", "code", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_told_with_its_place(
    splits: Splits, tmp_path: Path, part: str, code: str | None, message: str
) -> None:
    name = f"{tmp_path / 'none.py'}:part" if code is None else written(tmp_path, code)
    by_part: dict[str, dict[str, Any]] = {
        "loss": {"loss": {"own": name}},
        "schedule": {"schedule": {"kind": name}},
        "augment": {"augment": AugmentSettings(own=name)},
    }
    with pytest.raises(RecipeError, match=message) as caught:
        fit(Pixelwise(), splits, tmp_path / "fit", **by_part[part])
    assert name in str(caught.value)


def test_the_example_trains_and_an_edit_is_another_training(discs: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(EXAMPLE.read_bytes())
    recipe = Recipe.load(
        None,
        [
            *("model.base=8", "model.depth=1", "train.epochs=1", "train.precision=float32"),
            *(f"train.augment.own={path}:stripes", f"train.loss.own={path}:edges"),
            f"train.schedule.kind={path}:steps_down",
        ],
    )
    made = train(discs, tmp_path / "out", recipe)
    before = made.weights_sha256
    assert made.card.parents["own_loss"] == sha256_file(path)
    path.write_text(path.read_text().replace("0.1 if", "0.2 if").replace("1.0 if", "0.5 if"))
    assert train(discs, tmp_path / "out", recipe).weights_sha256 != before


def test_only_ones_own_is_hashed(tmp_path: Path) -> None:
    name = written(tmp_path, "def part(): pass\n")
    found = sha256_file(tmp_path / "parts.py")
    assert sources(FitSettings(), AugmentSettings()) == {}
    with_loss = FitSettings.model_validate({"loss": {"own": name}})
    assert sources(with_loss, AugmentSettings()) == {"own_loss": found}
    with_schedule = FitSettings.model_validate({"schedule": {"kind": name}})
    assert sources(with_schedule, AugmentSettings(own=name)) == {"own_schedule": found, "own_augment": found}


@pytest.mark.parametrize("setting", ["loss.own=nothing", "schedule.kind=sine", "augment.own=a:b-c", "loss.pixel=none"])
def test_a_name_that_is_none_is_refused_with_the_recipe(setting: str) -> None:
    with pytest.raises(RecipeError, match=f"train.{setting.partition('.')[0]}"):
        Recipe.load(None, [f"train.{setting}", "train.loss.dice_weight=0"])
