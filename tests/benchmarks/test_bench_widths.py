"""`compress bench widths`: one network is cut in several ways, each as its name says, and all are timed together."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.datasets import write_dataset
from support.networks import random_unet
from typer.testing import CliRunner

from benchmarks.report.widths.results import WidthsReport
from compress import checkpoint
from compress.checkpoint import Checkpoint
from compress.cli.main import app
from compress.models.plan import Dependencies
from compress.prune.costs import NetworkCosts
from compress.prune.step import PruneStep
from export.errors import UsageError


def discs_and_network(folder: Path) -> tuple[Path, Checkpoint]:
    data = write_dataset(folder / "discs", counts={"train": 6, "val": 3, "test": 1}, size=(32, 48))
    network = random_unet(base=16, classes=2)
    return data, write_checkpoint(folder / "ckpt", network, base=16, classes=2, class_names=("background", "disc"))


@pytest.mark.slow(first=True)
def test_every_way_is_carried_out_and_timed(tmp_path: Path) -> None:
    data, made = discs_and_network(tmp_path)
    words = ["bench", "widths", made.path, "--data", data, "--out", tmp_path / "out", "--speedup", 1.2, "--rounds", 3]
    done = CliRunner().invoke(app, [*map(str, words), "--set", "prune.finetune.batch_size=2", "--json"])
    assert done.exit_code == 0, done.output
    report = WidthsReport.model_validate(json.loads(done.stdout[done.stdout.index("{") :]))
    assert report == WidthsReport.model_validate_json((tmp_path / "out" / "report.json").read_text())

    by_name = {choice.name: choice for choice in report.choices}
    assert list(by_name) == ["dense", "latency table", "MACs", "one threshold", "same share"]
    dense, table, macs = (by_name[name] for name in ("dense", "latency table", "MACs"))
    assert dense.widths == Dependencies(checkpoint.load(made.path).network(), 1).widths()
    assert (dense.speedup, dense.speedup_predicted, dense.importance_lost, dense.damage) == (1.0, 1.0, 0.0, 0.0)
    # On some machines even the narrowest network is not predicted to be that much faster: so few channels cost no time.
    assert table.speedup_predicted >= 1.2 or "narrowest" in table.how
    # Counting multiplications does no more damage, and leaves as many of them or fewer.
    assert macs.damage is not None
    assert table.damage is not None
    assert macs.damage <= table.damage + 1e-6
    assert macs.macs <= table.macs
    for choice in report.choices:
        assert len(choice.latency_ms.samples) == 3
        assert choice.speedup == pytest.approx(dense.latency_ms.p50 / choice.latency_ms.p50)
        assert all(width % 16 == 0 for width in choice.widths.values())
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"| {layer} | {width} |" in text for layer, width in dense.widths.items())


def test_a_given_table_is_the_one_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def of(*_: object, **named: object) -> NetworkCosts:
        asked.update(named)
        raise UsageError("that is all this test wants to know")

    monkeypatch.setattr(NetworkCosts, "of", of)
    monkeypatch.setattr(PruneStep, "float_graph", lambda *_: None)
    monkeypatch.setattr(PruneStep, "probe", lambda *_: SimpleNamespace(size=(32, 48)))
    data, made = discs_and_network(tmp_path)
    words = ["bench", "widths", made.path, "--data", data, "--out", tmp_path / "out", "--speedup", 1.2]
    done = CliRunner().invoke(app, [*map(str, words), "--set", "prune.latency_table=table.json"])
    assert "that is all" in str(done.exception)
    assert asked["table"] == Path("table.json")


def test_a_speedup_that_is_none_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "widths", "c", "--data", "d", "--speedup", "1", "--out", str(tmp_path)])
    assert done.exit_code != 0
    assert "larger than 1" in str(done.exception)
