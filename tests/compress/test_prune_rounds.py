"""An accuracy budget: how many rounds it takes, what is kept when it is missed, and how a killed run resumes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.recipes import TINY_SETTINGS, by_speedup
from torch import nn

from compress import checkpoint
from compress.checkpoint import Checkpoint, ModelCard
from compress.models.plan import PruningPlan
from compress.prune import prune
from compress.prune.channels import SETBACKS, STRIDE
from compress.prune.decide import Decider, Decision
from compress.prune.recover import Recovery
from compress.recipe import Recipe
from compress.steps import read_record
from export.errors import BudgetMissedError, RecipeError, UsageError, WorkFailedError

pytestmark = pytest.mark.usefixtures("counted")


def result_of(path: Path) -> dict[str, Any]:
    record = read_record(path)
    assert record is not None
    result: dict[str, Any] = record["result"]
    return result


def test_several_rounds_are_one_plan(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    chosen = by_speedup("prune.speedup=2", "prune.rounds=2", "prune.channel_multiple=4")
    made = prune(trained.path, discs, tmp_path / "out", chosen)
    result = result_of(made.path)
    speedups = [each["speedup"] for each in result["rounds"]]
    assert len(speedups) == 2
    assert 2**0.5 <= speedups[0] < 2 <= speedups[1] == result["speedup"]
    (plan,) = made.card.pruning
    assert plan == PruningPlan.model_validate_json((made.path / "pruning_plan.json").read_text())
    assert {layer: list(pair) for layer, pair in plan.widths().items()} == result["widths"]
    # One cut of the parent rebuilds the network, and the weights are those of two cuts and recoveries.
    network, stored = checkpoint.load(made.path).network(), load_file(made.path / "weights.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())
    assert {path.name for path in made.path.iterdir()} >= {"history.json", "last", "pruning_plan.json"}
    assert not (made.path / ".scratch").exists()


def test_a_budget_alone_is_spent_until_nothing_can_go(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    made = prune(trained.path, discs, tmp_path / "out", by_speedup("prune.max_drop=1.0", "prune.channel_multiple=8"))
    result = result_of(made.path)
    assert {after for _, after in made.card.pruning[0].widths().values()} == {8}
    speedups = [each["speedup"] for each in result["rounds"]]
    assert speedups == sorted(speedups)
    assert speedups[0] >= STRIDE
    assert result["speedup"] == speedups[-1]
    assert result["speedup_asked"] is None


def test_a_budget_that_no_round_keeps_is_missed_and_the_best_is_kept(
    trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        BudgetMissedError, match=r"the IoU of disc is 0\.\d+, below its floor of 1.*The best found is kept in"
    ) as first:
        prune(trained.path, discs, out, by_speedup("prune.min_iou={disc = 1.0}", "prune.channel_multiple=4"))
    result = result_of(out)
    assert len(result["rounds"]) == SETBACKS + 1
    # Each round asked for a lower speed-up than the one before.
    speedups = [each["speedup"] for each in result["rounds"]]
    assert speedups == sorted(speedups, reverse=True)
    assert result["drop"] == min(each["drop"] for each in result["rounds"])
    with pytest.raises(BudgetMissedError) as second:
        prune(trained.path, discs, out, by_speedup("prune.min_iou={disc = 1.0}", "prune.channel_multiple=4"))
    assert str(second.value) == str(first.value)


def test_a_goal_that_loses_too_much_is_tried_in_more_rounds(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, floor = tmp_path / "out", "prune.min_iou={disc = 1.0}"
    with pytest.raises(BudgetMissedError, match="the IoU of disc"):
        prune(trained.path, discs, out, by_speedup("prune.speedup=1.5", floor, "prune.channel_multiple=4"))
    result = result_of(out)
    assert len(result["rounds"]) == 1 + 2
    reached = [each for each in result["rounds"] if each["speedup"] >= 1.5]
    assert len(reached) == 2
    assert result["speedup"] >= 1.5
    assert result["miou"] == max(each["miou"] for each in reached)
    said = capfd.readouterr().err
    assert "in 1 round: the IoU of disc" in said
    assert "in 2 rounds: the IoU of disc" in said


def test_a_latency_is_a_speedup_over_what_the_parent_takes(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    chosen = by_speedup("prune.latency_ms=6", "prune.channel_multiple=4")
    result = result_of(prune(trained.path, discs, tmp_path / "out", chosen).path)
    assert result["speedup_asked"] == 2.0
    assert result["speedup"] >= 2.0
    assert result["milliseconds"] <= 6
    with pytest.raises(BudgetMissedError, match=r"0\.01 ms, which is a speed-up of .*, is out of reach"):
        prune(trained.path, discs, tmp_path / "far", by_speedup("prune.latency_ms=0.01"))


def test_what_a_busy_machine_measured_is_doubted(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """While other work runs, a goal that seems missed may be within reach, and one that seems met may not be."""
    probe = import_module("compress.prune.step").LatencyProbe
    monkeypatch.setattr(probe, "measure", _with(disturbed=0.62)(probe.measure))
    met = by_speedup("prune.speedup=1.5", "prune.channel_multiple=4")
    result = result_of(prune(trained.path, discs, tmp_path / "met", met).path)
    assert result["disturbed"] == 0.62
    assert "warning: other work kept this machine busy: the median run took 62% longer" in capfd.readouterr().err
    with pytest.raises(BudgetMissedError, match=r"50 seems out of reach: .*62% longer.*prune again while .* quiet"):
        prune(trained.path, discs, tmp_path / "missed", by_speedup("prune.speedup=50", "prune.channel_multiple=8"))


def _with(**changes: Any) -> Callable[[Any], Any]:
    return lambda measure: lambda *given: replace(measure(*given), **changes)


def test_a_way_that_was_killed_is_gone_on_with(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = by_speedup("prune.speedup=2", "prune.rounds=2", "prune.channel_multiple=4")
    whole = prune(trained.path, discs, tmp_path / "whole", chosen)

    recover = import_module("compress.prune.recover")
    real, calls = recover.reestimate, []

    def killed_in_the_second(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(recover, "reestimate", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            prune(trained.path, discs, tmp_path / "out", chosen)
    first = tmp_path / ".out.partial" / ".scratch" / "round-1"
    made_at = (first / "weights.safetensors").stat().st_mtime_ns
    assert json.loads((first / "round.json").read_text())["miou"] > 0
    with monkeypatch.context() as patched:
        patched.setattr("compress.train.loop.Fit._train_epoch", _only_from(first, made_at))
        made = prune(trained.path, discs, tmp_path / "out", chosen)
    assert made.weights_sha256 == whole.weights_sha256
    assert made.card.pruning == whole.card.pruning


def _only_from(first: Path, made_at: int) -> Any:
    """The real `_train_epoch`, but it first checks that the first round's weights are those from before the kill."""
    from compress.train.loop import Fit

    real = Fit._train_epoch

    def train_epoch(fit: Fit, bar: Any) -> None:
        assert (first / "weights.safetensors").stat().st_mtime_ns == made_at
        real(fit, bar)

    return train_epoch


def test_a_floor_of_no_class_is_refused_before_anything_starts(
    trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="min_iou names disk; the classes are background, disc"):
        prune(trained.path, discs, tmp_path / "out", by_speedup("prune.min_iou={disk = 0.5}"))
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_share_of_the_channels_is_that_of_the_parent_in_any_number_of_rounds(
    trained: Checkpoint, discs: Path, tmp_path: Path, rounds: int
) -> None:
    out = tmp_path / "out"
    chosen = Recipe.load(None, [*TINY_SETTINGS, "prune.finetune.epochs=1", f"prune.rounds={rounds}"])
    result = result_of(prune(trained.path, discs, out, chosen).path)
    # Widths are multiples of 8, and there are few groups.
    assert result["channels_removed"] == pytest.approx(0.5, abs=0.08)
    before, after = (sum(pair[index] for pair in result["widths"].values()) for index in (0, 1))
    assert result["channels_removed"] == pytest.approx(1 - after / before)
    for layer, figures in result["groups"].items():
        assert [figures["width"], figures["kept"]] == result["widths"][layer]
        assert (figures["importance_lost"] > 0) == (figures["kept"] < figures["width"])


def test_a_share_that_widths_cannot_give_is_told(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["prune.ratio=0.95", "prune.finetune.epochs=1"]
    made = prune(trained.path, discs, tmp_path / "out", Recipe.load(None, [*TINY_SETTINGS, *asked]))
    removed = result_of(made.path)["channels_removed"]
    told = f"warning: {removed:.0%} of the channels are removed where 95% are asked for: widths are multiples of 8"
    assert told in capfd.readouterr().err


def test_a_round_that_cannot_be_gone_on_with_leaves_the_one_before(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_speedup_of = Decider.by_speedup

    def once(decider: Decider, network: nn.Module, before: float, wanted: float) -> Decision:
        if before > 1:
            raise UsageError("a constant in forward() needs 16 channels")
        return by_speedup_of(decider, network, before, wanted)

    monkeypatch.setattr(Decider, "by_speedup", once)
    chosen = by_speedup("prune.max_drop=1", "prune.channel_multiple=4")
    result = result_of(prune(trained.path, discs, tmp_path / "out", chosen).path)
    assert len(result["rounds"]) == 1
    told = "warning: round 2: a constant in forward() needs 16 channels; the last network within the budget is kept"
    assert told in capfd.readouterr().err


def test_a_try_that_fails_leaves_the_network_of_the_one_before(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recover = Recovery.run

    def once(recovery: Recovery, child: nn.Module, card: ModelCard, folder: Path) -> Any:
        if folder.name != "round-1":
            raise WorkFailedError("the loss was not finite")
        return recover(recovery, child, card, folder)

    monkeypatch.setattr(Recovery, "run", once)
    out, settings = tmp_path / "out", [*TINY_SETTINGS, "prune.min_iou={disc = 1.0}"]
    with pytest.raises(BudgetMissedError, match="the IoU of disc"):
        prune(trained.path, discs, out, Recipe.load(None, settings))
    assert len(result_of(out)["rounds"]) == 1
    told = "warning: in 2 rounds: the loss was not finite; the best network of the tries before is kept"
    assert told in capfd.readouterr().err


def test_what_the_recovery_cannot_use_is_said_before_anything_is_measured(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("compress.prune.prune"), "running", lambda *_: pytest.fail("the step was begun"))
    for setting, place in (
        ("loss.class_weights=[1,2,3]", r"3 weights for \d classes"),
        ("freeze.epochs=1", "freeze.epochs"),
        ("loss.own=nowhere.py:loss", "nowhere.py"),
    ):
        with pytest.raises(UsageError, match=place):
            prune(trained.path, discs, tmp_path / "out", by_speedup("prune.speedup=1.5", f"prune.finetune.{setting}"))


def test_a_latency_that_was_measured_once_is_the_goal_for_good(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = by_speedup("prune.latency_ms=6", "prune.channel_multiple=4")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("compress.prune.recover.reestimate", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(trained.path, discs, tmp_path / "out", chosen)
    # The machine has slowed down since.
    monkeypatch.setattr("compress.prune.step.LatencyProbe.parent_milliseconds", lambda _: 48.0)
    result = result_of(prune(trained.path, discs, tmp_path / "out", chosen).path)
    assert result["speedup_asked"] == 2.0


def test_a_latency_that_a_slower_machine_does_not_show_is_warned_about(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The parent took 6 ms when the goal was set, and takes 12 when it is timed beside the child."""
    monkeypatch.setattr("compress.prune.step.LatencyProbe.parent_milliseconds", lambda _: 6.0)
    chosen = by_speedup("prune.latency_ms=4", "prune.channel_multiple=4")
    result = result_of(prune(trained.path, discs, tmp_path / "out", chosen).path)
    assert result["speedup"] >= result["speedup_asked"] == 1.5
    told = f"warning: {result['milliseconds']:.3g} ms were measured where 4 are asked for: .* the parent took 6 ms,"
    assert re.search(told, capfd.readouterr().err)


def test_a_latency_that_the_parent_has_is_not_pruned_for(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already takes only 12 ms, and 20 ms are asked for"):
        prune(trained.path, discs, tmp_path / "out", by_speedup("prune.latency_ms=20"))


def test_a_network_at_its_floor_is_not_pruned(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no group of layers is wider than 64"):
        prune(trained.path, discs, tmp_path / "out", by_speedup("prune.speedup=2", "prune.channel_multiple=64"))


def test_a_share_that_is_less_than_a_step_of_every_width_is_not_pruned(
    trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    chosen = Recipe.load(None, [*TINY_SETTINGS, "prune.ratio=0.05", "prune.scope=local"])
    with pytest.raises(UsageError, match="not take even one step of 8 channels from any group of layers; ask for more"):
        prune(trained.path, discs, tmp_path / "out", chosen)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["prune.speedup=2", "prune.scope=local"], "search = 'ratio', or leave scope out"),
        (["prune.ratio=0.5", "prune.latency_table=t.json"], "latency_table is for a goal of speed"),
        (
            ["prune.speedup=2", "prune.search=ratio", "prune.latency_table=t.json"],
            "set that, or leave latency_table",
        ),
        (["prune.speedup=2", "prune.latency_ms=5"], "speedup, latency_ms exclude each other"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: list[str], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        Recipe.load(None, settings)
