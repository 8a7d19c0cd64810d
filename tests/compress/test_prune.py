"""`prune` makes a checkpoint smaller, measures it, and lets it recover with its parent as teacher."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import write_checkpoint
from support.networks import random_network, random_unet
from support.recipes import TINY_SETTINGS, by_speedup

from compress import checkpoint
from compress.anymodel import evaluate
from compress.checkpoint import Checkpoint
from compress.cli.main import main
from compress.models import all_logits
from compress.models.plan import Dependencies, PruningPlan
from compress.prune import prune
from compress.prune.importance import scores_of
from compress.recipe import Recipe
from compress.steps import read_record
from export.errors import BudgetMissedError, DatasetError, RecipeError, ShapeError, UsageError
from export.runtime import OnnxModel

PRUNE, RECOVER, STEP = (import_module(f"compress.prune.{name}") for name in ("prune", "recover", "step"))


def recipe(*settings: str) -> Recipe:
    return Recipe.load(None, [*TINY_SETTINGS, "prune.finetune.epochs=1", *settings])


def test_a_pruned_checkpoint_is_smaller_and_says_how(pruned: Checkpoint, trained: Checkpoint) -> None:
    record = read_record(pruned.path)
    assert record is not None
    result = record["result"]
    plan = PruningPlan.model_validate_json((pruned.path / "pruning_plan.json").read_text())
    assert pruned.card.pruning == (plan,)
    assert result["widths"] == {layer: list(pair) for layer, pair in plan.widths().items()}
    assert all(after % 8 == 0 and 8 <= after < before for before, after in plan.widths().values())
    assert result["channels_removed"] == pytest.approx(0.5, abs=0.05)
    assert result["latency_size"] == [48, 64]
    assert result.keys() >= {"speedup", "miou_parent", "miou", "miou_before_finetune", "best_epoch"}
    assert result["miou_parent"] == pytest.approx(trained.card.miou_val)
    assert result["miou"] == pruned.card.miou_val
    assert result["miou"] > 0.9
    assert pruned.card.parents["parent"] == trained.weights_sha256
    assert pruned.card.classes == trained.card.classes

    parent, child = trained.network(), pruned.network()
    assert len(child.get_parameter("head.weight")) == 2
    assert sum(p.numel() for p in child.parameters()) < 0.35 * sum(p.numel() for p in parent.parameters())
    stored = load_file(pruned.path / "weights.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in child.state_dict().items())


def test_what_is_timed_is_quantized_where_int8_will_serve(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parent and child are both timed as INT8 graphs, with every convolution in integers."""
    timed: list[onnx.ModelProto] = []

    class Seen(OnnxModel):
        def __init__(self, model: bytes, **options: Any) -> None:
            timed.append(onnx.load_from_string(model))
            super().__init__(model, **options)

    monkeypatch.setattr("compress.prune.probe.OnnxModel", Seen)
    made = prune(trained.path, discs, tmp_path / "out", recipe("prune.precision=int8"))
    result = (read_record(made.path) or {})["result"]
    assert result["speedup"] > 0
    assert len(timed) == 2
    for graph in timed:
        integers = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
        weights = [node.input[1] for node in graph.graph.node if node.op_type == "Conv"]
        assert len(weights) == 11
        assert integers.issuperset(weights)
    parent, child = (sum(len(tensor.raw_data) for tensor in graph.graph.initializer) for graph in timed)
    assert child < 0.5 * parent


def test_the_plan_is_the_magnitudes(pruned: Checkpoint, trained: Checkpoint) -> None:
    assert pruned.card.pruning == (scores_of(trained.network(), channels=1).plan(0.5, 8),)


def test_a_pruned_checkpoint_is_pruned_again(pruned: Checkpoint, discs: Path, tmp_path: Path) -> None:
    twice = prune(pruned.path, discs, tmp_path / "twice", recipe("prune.channel_multiple=4"))
    assert len(twice.card.pruning) == 2
    assert twice.card.pruning[0] == pruned.card.pruning[0]
    assert twice.card.parents["parent"] == pruned.weights_sha256
    network = checkpoint.load(twice.path).network()
    stored = load_file(twice.path / "weights.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())
    widths = Dependencies(network, 1).widths()
    assert sum(widths.values()) < sum(after for _, after in pruned.card.pruning[0].widths().values())
    with pytest.raises(UsageError, match="would be replaced"):
        prune(twice.path, discs, twice.path, recipe("prune.channel_multiple=2"))


def test_a_speedup_is_asked_of_the_probe_and_proven_on_the_exported_graph(
    trained: Checkpoint, discs: Path, tmp_path: Path, counted: list[str]
) -> None:
    made = prune(trained.path, discs, tmp_path / "out", by_speedup("prune.speedup=1.5", "prune.channel_multiple=2"))
    record = read_record(made.path)
    assert record is not None
    # The exported graph is 3 % slower than the probe predicts, and still as fast as was asked for.
    assert 1.5 <= record["result"]["speedup"] < 1.9
    assert counted.count("exported") <= 3
    assert counted.count("probe") >= 3


def test_a_speedup_out_of_reach_is_a_missed_budget_that_keeps_the_narrowest(
    trained: Checkpoint, discs: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, chosen = tmp_path / "out", by_speedup("prune.speedup=50", "prune.channel_multiple=8")
    with pytest.raises(BudgetMissedError, match=f"a speed-up of 50 is out of reach.*kept in {out}") as first:
        prune(trained.path, discs, out, chosen)
    kept = checkpoint.load(out)
    assert {after for _, after in kept.card.pruning[0].widths().values()} == {8}
    monkeypatch.setattr(PRUNE, "cut_channels", lambda *_: pytest.fail("it was pruned again"))
    with pytest.raises(BudgetMissedError) as second:
        prune(trained.path, discs, out, chosen)
    assert str(second.value) == str(first.value)


def test_a_decision_is_taken_once(
    trained: Checkpoint, discs: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run resumes with the plan that it measured, and times nothing again."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    out, chosen = tmp_path / "out", by_speedup("prune.speedup=1.5", "prune.channel_multiple=2")
    with monkeypatch.context() as patched:
        patched.setattr(RECOVER, "reestimate", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(trained.path, discs, out, chosen)
    decided = json.loads((tmp_path / ".out.partial" / ".scratch" / "round-1" / "pruning_plan.json").read_text())
    counted.clear()
    made = prune(trained.path, discs, out, chosen)
    assert counted == []
    assert made.card.pruning[0].model_dump(mode="json") == decided


def test_what_is_up_to_date_is_returned(
    pruned: Checkpoint, trained: Checkpoint, discs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = prune(trained.path, discs, pruned.path, Recipe.load(None, TINY_SETTINGS))
    assert again.weights_sha256 == pruned.weights_sha256
    assert "is up to date" in capfd.readouterr().err


def test_where_the_probe_cannot_tell_the_exporter_is_asked(
    trained: Checkpoint, discs: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_tell(*_: Any) -> float:
        raise ShapeError("a width stands elsewhere too")

    monkeypatch.setattr(STEP.LatencyProbe, "speedup", cannot_tell)
    made = prune(trained.path, discs, tmp_path / "out", by_speedup("prune.speedup=1.5", "prune.channel_multiple=2"))
    assert (read_record(made.path) or {})["result"]["speedup"] >= 1.5
    assert counted.count("exported") > 3


def nested(folder: Path, **arguments: Any) -> Checkpoint:
    """An untrained UNet++ of depth 2 for the classes of `discs`, pruned once."""
    network = random_network("unetpp", classes=2, **arguments)
    plan = scores_of(network, channels=1).plan(0.3, 4)
    pruned = plan.apply(network, channels=1)
    names = ("background", "disc")
    given = {"pruning": (plan,), "class_names": names, "factory": "unetpp", "classes": 2, **arguments}
    return write_checkpoint(folder, pruned, **given)


def test_a_nested_network_is_cut_to_a_depth(discs: Path, tmp_path: Path, counted: list[str]) -> None:
    parent = nested(tmp_path / "parent", squeeze_excite=True)
    child = prune(parent.path, discs, tmp_path / "out", by_speedup("prune.levels=1"))
    image = torch.randn(2, 1, 8, 12)
    whole, part = parent.network(), child.network()
    with torch.inference_mode():
        assert torch.equal(part(image), all_logits(whole, image)[0])
    assert child.card.arguments == {**parent.card.arguments, "levels": 1}
    assert child.card.size_multiple == 2
    assert [cut.layer for cut in child.card.pruning[0].cuts] == [
        f"{block}.{layer}" for block in ("stem", "down.0", "nodes.0_1.block") for layer in ("0", "3", "6.gate.1")
    ]
    assert child.card.parents["parent"] == parent.weights_sha256
    result = (read_record(child.path) or {})["result"]
    assert result["speedup"] > 1
    assert result["levels"] == 1
    for key, model in (("miou_parent", parent), ("miou", child)):
        assert result[key] == pytest.approx(evaluate(model.path, discs, split="val").miou, abs=1e-6)
    assert child.card.miou_val == result["miou"] != result["miou_parent"]
    # The child has a single depth.
    with pytest.raises(UsageError, match="has no smaller network inside"):
        prune(child.path, discs, tmp_path / "again", by_speedup("prune.levels=1"))


def test_a_depth_that_was_timed_beside_other_work_is_doubted(
    discs: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    probe = STEP.LatencyProbe
    measure = probe.measure
    monkeypatch.setattr(probe, "measure", lambda *given: replace(measure(*given), disturbed=0.5))
    parent = nested(tmp_path / "parent")
    child = prune(parent.path, discs, tmp_path / "out", by_speedup("prune.levels=1"))
    assert (read_record(child.path) or {})["result"]["disturbed"] == 0.5
    assert "the median run took 50% longer than the fastest" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "levels", "problem"),
    [
        ({"deep_supervision": False}, 1, "has no smaller network inside.*deep supervision.*--speedup or --ratio"),
        ({}, 2, "has 2 levels; --levels takes 1 to 1"),
        ({}, 7, "has 2 levels; --levels takes 1 to 1"),
    ],
)
def test_levels_that_were_not_trained_are_refused(
    arguments: dict[str, Any], levels: int, problem: str, discs: Path, tmp_path: Path
) -> None:
    parent = nested(tmp_path / "parent", **arguments)
    with pytest.raises(UsageError, match=problem):
        prune(parent.path, discs, tmp_path / "out", by_speedup(f"prune.levels={levels}"))
    assert not (tmp_path / ".out.partial").exists()


def test_a_plain_unet_has_no_levels_to_cut(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no smaller network inside"):
        prune(trained.path, discs, tmp_path / "out", by_speedup("prune.levels=1"))


@pytest.mark.slow
def test_levels_on_the_command_line(
    discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = nested(tmp_path / "parent")
    line = ["compress", "prune", parent.path, "--data", discs, "--out", tmp_path / "out", "--levels", "1"]

    def call(*more: str) -> int:
        monkeypatch.setattr("sys.argv", [*map(str, line), *more])
        with pytest.raises(SystemExit) as leaving:
            main()
        return int(leaving.value.code or 0)

    # A goal on the command line replaces the recipe's.
    assert call("--set", "prune.ratio=0.5") == 0
    assert "on the validation split, cut to depth 1" in capfd.readouterr().out
    assert call("--ratio", "0.5") == 2
    assert "--ratio and --levels exclude each other; give one" in capfd.readouterr().err


def test_without_a_goal_nothing_is_pruned(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give --speedup 4, --ratio 0\.5 or --max-drop 0\.01"):
        prune(trained.path, discs, tmp_path / "out", Recipe())


def test_crops_of_which_one_pixel_is_left_are_refused_before_anything_is_written(
    trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"\[4, 4\] is too small: the model reduces 4 pixels to one"):
        prune(trained.path, discs, tmp_path / "out", recipe("data.crop=[4, 4]", "prune.ratio=0.3"))
    assert not list(tmp_path.glob("*out*"))


def test_a_dataset_of_other_classes_is_refused(discs: Path, tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "ckpt", random_unet())
    with pytest.raises(DatasetError, match="was made for"):
        prune(made.path, discs, tmp_path / "out", recipe())
