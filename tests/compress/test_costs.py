"""Costs for the search of widths: the layers that the real export of the pruned network has, and their times."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from support.latency import FakeMachine
from support.networks import Mobile, exported, random_network, random_unet, seeded
from support.recipes import by_speedup
from torch import nn

from compress.checkpoint import Checkpoint
from compress.prune import prune
from compress.prune.costs import NetworkCosts, why_foreign
from compress.prune.importance import scores_of
from compress.prune.scores import Scores
from compress.prune.search import ByTable
from compress.steps import read_record
from export.errors import BudgetMissedError, UsageError, WorkFailedError
from export.latency.layers import layers_of
from export.latency.store import cache_path
from export.latency.table import LatencyTable
from export.machine import Machine, usable_cores
from export.to_onnx import with_outputs

SIZE = (16, 24)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    """A machine whose kernel times follow from their multiplications, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return FakeMachine(monkeypatch)


def costs_of(network: nn.Module, **given: Any) -> NetworkCosts:
    graph = with_outputs(exported(network), "mask")
    settings = {"channels": 1, "size": SIZE, "multiple": 4, "precision": "fp32", **given}
    return NetworkCosts.of(network, graph, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        random_unet,
        lambda: random_unet(upsampling="transposed", block="residual", squeeze_excite=True),
        lambda: random_unet(upsampling="bilinear", skip="add", block="residual"),
        lambda: random_network("unetpp", block="residual", squeeze_excite=True),
        lambda: seeded(Mobile),
    ],
    ids=["plain", "residual-se-transposed", "residual-add-bilinear", "unetpp-residual-se", "depthwise"],
)
def test_layers_at_the_widths_of_a_plan_are_those_of_the_real_export(
    made: Callable[[], nn.Module], machine: FakeMachine
) -> None:
    network = made()
    costs = costs_of(network)
    # Floats are computed in blocks of 8 channels: a narrower layer would be a different one.
    plan = scores_of(network, channels=1).plan(0.5, 8)
    assert plan.kept() != costs.widest
    pruned = with_outputs(exported(plan.apply(network, channels=1)), "mask")
    real = Counter(layer.at({}) for layer in layers_of(pruned, size=SIZE))
    assert Counter(layer.at(plan.kept()) for layer in costs.layers) == real


def test_the_plan_of_a_speedup_takes_that_much_less_by_the_table_and_loses_little(machine: FakeMachine) -> None:
    network = random_unet(base=16)
    scores, costs = scores_of(network, channels=1), costs_of(network, multiple=4)
    search = ByTable(scores, costs)
    before = costs.milliseconds(costs.widest)

    def lost(kept: Mapping[str, int]) -> float:
        return sum(scores.damage(name, width) for name, width in kept.items())

    by_ratio = [scores.plan(ratio / 20, 4).kept() for ratio in range(21)]
    for speedup in (1.2, 2.0, 3.0):
        plan = search.plan(speedup)
        kept = plan.kept()
        assert costs.milliseconds(kept) <= before / speedup
        assert search.predicted(plan) >= speedup
        # No group could keep more channels in that time.
        for name, widths in costs.widths.items():
            for wider in [width for width in widths if width > kept[name]]:
                assert costs.milliseconds({**kept, name: wider}) > before / speedup
        # No plan of one ratio for all groups loses less in that time.
        as_fast = [other for other in by_ratio if costs.milliseconds(other) <= before / speedup]
        assert lost(kept) <= min(map(lost, as_fast))
    assert search.plan(1.0).kept() == search.costs.widest
    assert set(search.plan(1e9).kept().values()) == {4}


def test_levels_go_where_no_width_is_narrow_enough(machine: FakeMachine) -> None:
    network = random_unet(base=16, depth=3)
    costs = costs_of(network, whole_parts=True)
    search = ByTable(scores_of(network, channels=1), costs)
    whole = costs.milliseconds(costs.widest)
    deepest, above = costs.parts.levels
    narrowest = {name: widths[0] for name, widths in costs.widths.items()}
    lighter = {**narrowest, **dict.fromkeys(deepest, 0)}
    assert costs.milliseconds(lighter) < costs.milliseconds(narrowest)

    between = (costs.milliseconds(lighter) + costs.milliseconds(narrowest)) / 2
    plan = search.plan(whole / between)
    assert costs.milliseconds(plan.kept()) <= between
    gone = {name for name, kept in plan.kept().items() if not kept}
    assert deepest <= gone
    # Each group of a level is given the time that the level as a whole spares.
    spared = costs.spared(plan.kept())
    assert len({round(spared[name], 9) for name in deepest}) == 1
    assert spared[min(deepest)] > 0

    fastest = search.plan(1e9).kept()
    assert {name for name, kept in fastest.items() if not kept} == deepest | above
    assert search.plan(1.5).apply(network, channels=1)


def test_a_block_goes_where_nothing_is_lost_with_it(machine: FakeMachine) -> None:
    network = random_network("encoder-unet", encoder="resnet18", pretrained=False)
    costs = costs_of(network, size=(32, 64), multiple=16, whole_parts=True)
    scores = scores_of(network, channels=1)
    useless = "encoder.layer3.1.conv1"
    assert useless in costs.parts.additions
    scores = Scores({**scores.raw, useless: scores.raw[useless] * 0})
    kept = ByTable(scores, costs).plan(1.05).kept()
    assert [name for name, width in kept.items() if not width] == [useless]
    with_all = costs_of(network, size=(32, 64), multiple=16)
    assert 0 not in ByTable(scores, with_all).plan(1.05).kept().values()


def test_a_table_is_measured_once(machine: FakeMachine) -> None:
    first = costs_of(random_unet(base=16))
    timed = machine.timed
    assert timed > 1
    machine.speed = 0.5
    second = costs_of(random_unet(base=16))
    assert not second.foreign
    # Only the reference is timed again, to see that the machine takes twice as long now.
    assert machine.timed == timed + 1
    assert second.milliseconds(second.widest) == pytest.approx(2 * first.milliseconds(first.widest))


def by_table(*settings: str) -> Any:
    return by_speedup("prune.search=table", "prune.channel_multiple=4", *settings)


@pytest.fixture
def table(trained: Checkpoint, discs: Path, tmp_path: Path, machine: FakeMachine, counted: list[str]) -> Path:
    """The latency table of the layers of `trained`, as `prune` measures it."""
    costs = costs_of(trained.network(), size=(48, 64), whole_parts=True)
    assert costs.table.sizes == ((48, 64),)
    return cache_path("fp32", usable_cores())


def edited(table: Path, out: Path, **changes: Any) -> Path:
    content = json.loads(table.read_text())
    content["machine"].update(changes)
    out.write_text(json.dumps(content))
    return out


@pytest.fixture
def real_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the clock of `counted`, but the layers of the real exported graph."""

    def float_graph(step: Any, network: nn.Module) -> Any:
        return with_outputs(exported(network), "mask")

    monkeypatch.setattr("compress.prune.step.PruneStep.float_graph", float_graph)


def test_a_machine_of_the_same_name_may_be_another(table: Path, tmp_path: Path) -> None:
    """Virtual machines share names, so the CPU's model counts too; tables from before it was written do not have it."""
    assert why_foreign(LatencyTable.load(table)) is None
    other = LatencyTable.load(edited(table, tmp_path / "other.json", cpu_model="cpu family 1, model 2"))
    assert why_foreign(other) == "of another machine"
    newer = other.model_copy(update={"machine": Machine.here(), "onnxruntime": "99.0"})
    assert re.fullmatch(r"by onnxruntime 99\.0, where this machine has \d+\.\d+\.\d+", why_foreign(newer) or "")
    content = json.loads(table.read_text())
    del content["machine"]["cpu_model"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert why_foreign(LatencyTable.load(tmp_path / "old.json")) is None


@pytest.mark.usefixtures("real_export")
def test_the_table_of_another_machine_decides_for_it(
    trained: Checkpoint, discs: Path, tmp_path: Path, table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = edited(table, tmp_path / "table.json", cpu="Abacus 9000")
    made = prune(trained.path, discs, tmp_path / "out", by_table("prune.speedup=2", f"prune.latency_table={foreign}"))
    result = (read_record(made.path) or {})["result"]
    assert result["speedup"] == result["speedup_predicted"] >= 2.0
    said = capfd.readouterr().err
    assert "the latency table, of another machine, predicted" in said
    assert "x on Abacus 9000" in said
    measured = LatencyTable.load(foreign)
    assert result["milliseconds"] > 0
    assert measured.machine.cpu == "Abacus 9000"
    for figures in result["groups"].values():
        assert figures["milliseconds_spared"] >= 0
        assert 0 <= figures["importance_lost"] < 1
        assert figures["kept"] <= figures["width"]


@pytest.mark.usefixtures("real_export")
@pytest.mark.parametrize(("measured", "table_decides"), [(1.01, True), (2.05, False)])
def test_the_table_decides_where_it_contradicts_a_disturbed_clock(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    table: Path,
    counted: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    measured: float,
    table_decides: bool,
) -> None:
    """In the first case the clock finds no network faster, and would keep the narrowest as the best of them."""
    probe = import_module("compress.prune.step").LatencyProbe
    measure = probe.measure
    monkeypatch.setattr(probe, "measure", lambda *given: replace(measure(*given), speedup=measured, disturbed=0.6))
    made = prune(trained.path, discs, tmp_path / "out", by_table("prune.speedup=2", f"prune.latency_table={table}"))
    result = (read_record(made.path) or {})["result"]
    assert 2.0 <= result["speedup_predicted"] < 2.2
    assert result["speedup"] == (result["speedup_predicted"] if table_decides else measured)
    assert (result.get("speedup_here", measured), result["disturbed"]) == (measured, 0.6)
    assert counted.count("exported") == 1
    said = capfd.readouterr().err
    assert "the median run took 60% longer" in said
    assert ("the latency table decides instead" in said) == table_decides


@pytest.mark.usefixtures("real_export")
def test_a_pruned_network_may_have_fewer_levels(trained: Checkpoint, discs: Path, tmp_path: Path, table: Path) -> None:
    """The deeper of two levels can go; even at the narrowest widths, nothing else is so fast."""
    foreign = edited(table, tmp_path / "table.json", cpu="Abacus 9000")
    costs = costs_of(trained.network(), size=(48, 64), table=foreign, whole_parts=True)
    (deepest,) = costs.parts.levels
    narrowest = {name: widths[0] for name, widths in costs.widths.items()}
    wanted = costs.milliseconds(costs.widest) / costs.milliseconds({**narrowest, **dict.fromkeys(deepest, 0)})
    goal = (f"prune.speedup={wanted * 0.999}", f"prune.latency_table={foreign}")
    made = prune(trained.path, discs, tmp_path / "out", by_table(*goal))
    assert made.card.size_multiple == 2
    assert {cut.layer for cut in made.card.pruning[0].cuts if not cut.kept} == deepest
    logits = made.network()(torch.zeros(1, 1, 6, 10))
    assert logits.shape[2:] == (6, 10)
    result = (read_record(made.path) or {})["result"]
    assert {name for name, pair in result["widths"].items() if pair[1] == 0} == deepest
    with pytest.raises(BudgetMissedError, match="out of reach"):
        prune(trained.path, discs, tmp_path / "without", by_table(*goal, "prune.whole_parts=false"))


@pytest.mark.usefixtures("real_export")
def test_a_goal_beyond_the_table_is_missed(trained: Checkpoint, discs: Path, tmp_path: Path, table: Path) -> None:
    foreign = edited(table, tmp_path / "table.json", cpu="Abacus 9000")
    chosen = by_table("prune.latency_ms=0.0001", f"prune.latency_table={foreign}")
    with pytest.raises(BudgetMissedError, match=r"0\.0001 ms, which is .*, is out of reach"):
        prune(trained.path, discs, tmp_path / "out", chosen)


@pytest.mark.usefixtures("real_export")
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("prune.latency_size=[32, 32]",), "was measured at 48x64, not at 32x32"),
        (("prune.precision=int8",), "was measured in fp32 and int8 is asked for"),
    ],
)
def test_a_table_of_something_else_is_refused(
    trained: Checkpoint, discs: Path, tmp_path: Path, table: Path, settings: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        prune(
            trained.path,
            discs,
            tmp_path / "out",
            by_table("prune.speedup=2", f"prune.latency_table={table}", *settings),
        )


def test_where_layers_cannot_be_timed_one_threshold_serves_for_all(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    counted: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Any, **__: Any) -> NetworkCosts:
        raise WorkFailedError("onnxruntime cannot run the graph that was to be timed")

    monkeypatch.setattr(NetworkCosts, "of", refused)
    made = prune(trained.path, discs, tmp_path / "out", by_table("prune.speedup=1.5"))
    assert "cannot be timed one by one" in capfd.readouterr().err
    result = (read_record(made.path) or {})["result"]
    assert result["speedup"] >= 1.5
    assert "speedup_predicted" not in result


@pytest.mark.usefixtures("real_export")
def test_where_times_cannot_be_kept_that_is_told_and_no_other_way_is_taken(
    trained: Checkpoint, discs: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be written: Not a directory; .* XDG_CACHE_HOME"):
        prune(trained.path, discs, tmp_path / "out", by_table("prune.speedup=1.5"))
    assert not (tmp_path / ".out.partial").exists()


def test_a_table_that_is_not_there_is_told_before_anything_starts(
    trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no such table; measure it again: compress bench table"):
        prune(trained.path, discs, tmp_path / "out", by_table("prune.speedup=2", f"prune.latency_table={tmp_path}/no"))
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.slow(first=True)
def test_real_layers_real_clock(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    made = prune(trained.path, discs, tmp_path / "out", by_table("prune.speedup=1.1", "prune.channel_multiple=8"))
    result = (read_record(made.path) or {})["result"]
    assert result["speedup_predicted"] > 1
    assert result["speedup"] >= 1.1
    assert any(figures["milliseconds_spared"] > 0 for figures in result["groups"].values())
