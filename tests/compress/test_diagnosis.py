"""The diagnosis after a training: each finding comes with its cause and only then, and proposes existing settings."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import Splits
from support.fits import splits as small_splits
from torch import Tensor, nn

from compress.diagnosis import Trained, diagnosed
from compress.recipe import Recipe, leaves, unusual
from compress.settings.train import TrainSettings
from compress.steps import read_record
from compress.train import train
from compress.train.lookback import look_back


def epoch(number: int, *, loss: float, miou: float, norm: float = 0.5, **more: Any) -> dict[str, Any]:
    return {
        **{"epoch": number, "loss": loss, "gradient_norm": norm, "skipped": 0, "miou": miou},
        **{"iou_per_class": {"a": 0.8, "b": 0.8}, "confusion": [[50, 5], [5, 40]], **more},
    }


def named(recipe: Recipe) -> dict[str, Any]:
    return dict(leaves(recipe.model_dump(mode="json")))


HEALTHY = Trained(
    settings=TrainSettings(),
    history=[epoch(n, loss=1 / n, miou=0.8 - 0.2 / n) for n in range(1, 21)],
    best_epoch=20,
    miou=0.79,
    miou_train=0.82,
    dead={"up.relu": (1, 64)},
    recipe=named(Recipe()),
)


def with_norm(norm: float) -> Trained:
    return replace(HEALTHY, history=[{**entry, "gradient_norm": norm} for entry in HEALTHY.history])


SICK: dict[str, tuple[Trained, str]] = {
    "diverging": (
        replace(
            HEALTHY,
            history=[epoch(n, loss=5000.0, miou=0.1 + 0.02 * n, norm=20.0) for n in range(1, 21)],
            settings=TrainSettings(learning_rate=500, clip_norm=1e6),
            miou=0.5,
            miou_train=0.7,
        ),
        "divergence",
    ),
    "neither known nor learned by heart": (replace(HEALTHY, miou=0.2, miou_train=0.4, best_epoch=3), "underfitting"),
    "by heart": (replace(HEALTHY, miou_train=0.95), "overfitting"),
    "worse in the end": (
        replace(HEALTHY, history=[*HEALTHY.history, epoch(21, loss=0.01, miou=0.6)], best_epoch=20),
        "overfitting",
    ),
    "not done": (
        replace(HEALTHY, history=[epoch(n, loss=1, miou=0.03 * n) for n in range(1, 21)], miou=0.6, miou_train=0.6),
        "underfitting",
    ),
    "too small": (replace(HEALTHY, miou=0.3, miou_train=0.32, best_epoch=3), "underfitting"),
    "one of two": (
        replace(HEALTHY, history=[{**entry, "confusion": [[60, 0], [40, 0]]} for entry in HEALTHY.history]),
        "classes never predicted",
    ),
    "exploding": (with_norm(100.0), "exploding gradients"),
    "skipped": (
        replace(HEALTHY, history=[{**entry, "skipped": 3} for entry in HEALTHY.history]),
        "exploding gradients",
    ),
    "vanishing": (with_norm(1e-7), "vanishing gradients"),
    "dead": (replace(HEALTHY, dead={"stem.2": (20, 32), "down.0": (2, 32)}), "dead channels"),
}


def test_a_healthy_training_has_no_finding() -> None:
    assert diagnosed(HEALTHY) == []


@pytest.mark.parametrize(("trained", "kind"), SICK.values(), ids=list(SICK))
def test_each_illness_is_found_alone_and_its_remedies_exist(trained: Trained, kind: str) -> None:
    (finding,) = diagnosed(trained)
    assert finding.kind == kind
    assert finding.tries
    had = unusual({"train": trained.settings.model_dump(mode="json")})
    for setting in finding.tries:
        assert Recipe.load(None, [*had, setting]) != Recipe.load(None, [*had]), setting
        assert f"--set {setting}" in str(finding)


def test_what_is_missing_and_what_is_dead_is_named() -> None:
    (missing,) = diagnosed(SICK["one of two"][0])
    assert missing.says.startswith("b occur")
    (dead,) = diagnosed(SICK["dead"][0])
    assert "stem.2 (20 of 32)" in dead.says
    assert "down.0" not in dead.says


def test_rules_pass_over_a_look_back_that_saw_nothing() -> None:
    for what in ("by heart", "too small", "vanishing"):
        assert diagnosed(replace(SICK[what][0], miou_train=None)) == []


def test_a_network_of_ones_own_is_not_told_to_change_what_it_does_not_have() -> None:
    settings = [
        setting
        for trained, _ in SICK.values()
        for finding in diagnosed(replace(trained, recipe={}))
        for setting in finding.tries
    ]
    assert settings
    assert not any(setting.startswith("model.") for setting in settings)


TRIED = (
    *("train.warmup=0.3", "train.loss.class_weights=balanced", "train.loss.lovasz_weight=2", "train.loss.pixel=ohem"),
    *("train.augment.policy=trivial", "train.augment.cutmix=0.7", "train.patience=5", "train.precision=float32"),
    *("data.rare_images=0.5", "model.block=residual", "model.dropout=0.2"),
)


@pytest.mark.parametrize(
    "illness", ["by heart", "worse in the end", "one of two", "exploding", "skipped", "vanishing", "dead"]
)
def test_what_the_recipe_does_already_is_not_to_be_tried(illness: str) -> None:
    recipe = Recipe.load(None, [*TRIED, "train.epochs=20"])
    (finding,) = diagnosed(replace(SICK[illness][0], settings=recipe.train, recipe=named(recipe)))
    assert finding.tries
    done = {setting.partition("=")[0] for setting in TRIED}
    assert not [setting for setting in finding.tries if setting.partition("=")[0] in done]


def test_more_epochs_are_no_remedy_where_patience_ended_a_training() -> None:
    for name in ("too small", "one of two"):
        (finding,) = diagnosed(replace(SICK[name][0], settings=TrainSettings(epochs=60, patience=5)))
        assert "train.patience=none" in finding.tries
        assert not any(setting.startswith("train.epochs") for setting in finding.tries)


def test_steps_that_were_all_skipped_have_no_gradient_that_vanished() -> None:
    history = [{**entry, "skipped": 3, "gradient_norm": 0.0} for entry in HEALTHY.history]
    assert [finding.kind for finding in diagnosed(replace(HEALTHY, history=history))] == ["exploding gradients"]


def test_a_high_loss_is_no_divergence_where_it_is_made_of_more() -> None:
    history = [{**entry, "loss": 5.0} for entry in HEALTHY.history]
    assert [finding.kind for finding in diagnosed(replace(HEALTHY, history=history))] == ["divergence"]
    more: list[dict[str, Any]] = [
        {"loss": {"own": "file.py:loss"}},
        {"loss": {"lovasz_weight": 3.0}},
        {"attention_weight": 1000.0},
    ]
    for settings in map(TrainSettings.model_validate, more):
        assert diagnosed(replace(HEALTHY, history=history, settings=settings)) == []


def test_of_an_average_that_won_its_own_answers_are_judged() -> None:
    """Where the epochs predict one class only and the average both, there is no finding; the other way round, one."""
    one, both = [[60, 0], [40, 0]], [[50, 5], [5, 40]]
    for epochs, average, kinds in ((one, both, []), (both, one, ["classes never predicted"])):
        history = [epoch(n, loss=1 / n, miou=0.6, confusion=epochs) for n in range(1, 21)]
        history[-1]["swa"] = {**history[-1], "miou": 0.79, "confusion": average}
        assert [finding.kind for finding in diagnosed(replace(HEALTHY, history=history, averaged=True))] == kinds


def test_a_class_that_does_not_occur_need_not_be_predicted() -> None:
    history = [epoch(n, loss=1 / n, miou=0.79, confusion=[[60, 0], [0, 0]]) for n in range(1, 21)]
    assert diagnosed(replace(HEALTHY, history=history)) == []


class HalfDead(nn.Module):
    """One of its four channels never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv2d(1, 4, 1)
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.spread.weight.copy_(torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None, None, None])
            self.spread.bias.copy_(torch.tensor([0.0, 0.0, 5.0, -5.0]))  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.spread(image)))
        return logits


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


def test_channels_that_never_answer_are_counted(splits: Splits) -> None:
    network = HalfDead()
    miou, dead = look_back(network, splits[0], 2, 4)
    assert dead == {"relu": (1, 4)}
    assert miou is not None
    assert 0 <= miou <= 1
    assert not network.relu._forward_hooks


class Mixed(nn.Module):
    """ReLUs over vectors, tokens and channels-last maps, and one over a convolution; all channels but one are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv2d(1, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))
        self.tokens = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.rows = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.turned = nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            for layer in (self.gate[2], self.tokens[0], self.rows[0], self.norm):
                nn.init.zeros_(layer.get_parameter("weight"))
                nn.init.constant_(layer.get_parameter("bias"), -1.0)
            self.norm.bias[0] = 1.0

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.norm(self.spread(image)) + 0 * image)
        x = x * self.gate(x)[:, :, None, None].sigmoid()
        x = x + self.tokens(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])
        x = self.rows(x.movedim(1, -1)).movedim(-1, 1)
        x = self.turned(self.norm(x).movedim(1, -1)).movedim(-1, 1)
        logits: Tensor = self.head(x)
        return logits


def test_channels_are_those_of_convolutions_alone(splits: Splits) -> None:
    _, dead = look_back(Mixed(), splits[0], 2, 4)
    assert dead == {"relu": (3, 4)}


def test_an_epoch_whose_every_step_was_skipped_says_nothing_of_losses() -> None:
    first, *others = HEALTHY.history
    nothing = {"loss": None, "gradient_norm": None, "skipped": 2}
    history = [{**first, **nothing}, *others, {**epoch(21, loss=0, miou=0.6), **nothing}]
    assert diagnosed(replace(HEALTHY, history=history)) == []


def test_a_finished_training_is_kept_whatever_becomes_of_its_diagnosis(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("no such dimension")

    monkeypatch.setattr(import_module("compress.train.train"), "look_back", fail)
    small = ["model.base=8", "model.depth=1", "train.epochs=1", "train.precision=float32"]
    made = train(discs, tmp_path / "out", Recipe.load(None, small))
    result = (read_record(made.path) or {})["result"]
    assert (result["miou_train"], result["diagnosis"]) == (None, [])
    assert result["miou"] > 0
    assert "no diagnosis of this training: IndexError: no such dimension" in capfd.readouterr().err


def test_a_training_that_learns_nothing_is_told_so(
    discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = ["model.base=8", "model.depth=1", "train.epochs=2", "train.precision=float32", "train.learning_rate=1e-8"]
    made = train(discs, tmp_path / "out", Recipe.load(None, small))
    result = (read_record(made.path) or {})["result"]
    assert result["miou_train"] < 0.6
    kinds = {finding["kind"] for finding in result["diagnosis"]}
    assert kinds & {"underfitting", "classes never predicted"}
    err = capfd.readouterr().err
    assert all(kind in err for kind in kinds)
    history = json.loads((made.path / "history.json").read_text())
    assert all(entry["gradient_norm"] > 0 and entry["skipped"] == 0 for entry in history)
