"""`quantize --mode qat`: the trained graph replaces the calibrated one where it is no worse."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
from support.quantizing import recipe

from compress.checkpoint import Checkpoint
from compress.quantize import quantize
from compress.quantize.qat.operators import OPERATORS
from compress.steps import read_record
from export.bundle import verify
from export.errors import UsageError, WorkFailedError
from export.profiling import optimised_graph


def test_signed_activations_are_not_trained(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    wrong = recipe("quantize.mode=qat", "quantize.target=tensorrt")
    with pytest.raises(UsageError, match="--for tensorrt takes signed ones; use --mode ptq"):
        quantize(trained.path, discs, tmp_path / "out", wrong)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_trained_is_said_before_anything_is_chosen(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(OPERATORS, "MaxPool")
    with pytest.raises(WorkFailedError, match=r"MaxPool \(.*\) cannot be trained through .* use --mode ptq"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.mode=qat", "quantize.calibration=auto"))
    assert "calibration by" not in capfd.readouterr().err


def test_training_beats_calibration_where_that_loses(
    spoilt: tuple[Path, set[str]], discs: Path, tmp_path: Path
) -> None:
    learned = ("quantize.mode=qat", "quantize.finetune.epochs=12", "quantize.finetune.learning_rate=0.003")
    short = ("quantize.finetune.batch_size=4", "quantize.finetune.ema_decay=0.8", "quantize.max_drop=0.05")
    made = quantize(spoilt[0], discs, tmp_path / "out", recipe("quantize.calibration=minmax", *learned, *short))
    record = (read_record(made.path) or {})["result"]
    assert record["mode"] == "qat"
    assert record["miou"] == record["miou_qat"] > record["miou_ptq"] + 0.01
    # Fake-quantized in torch or quantized in the runtime, it is the same network.
    assert abs(record["qat"]["miou"] - record["miou_qat"]) < 0.003
    assert record["qat"]["milliseconds"] > 0
    assert record["qat"]["milliseconds_ptq"] > 0
    assert not (made.path / ".scratch").exists()
    verify(made.path)
    # It runs the same operators as the calibrated graph.
    calibrated = quantize(
        spoilt[0], discs, tmp_path / "ptq", recipe("quantize.calibration=minmax", "quantize.max_drop=1")
    )
    ran = [
        Counter(node.op_type for node in onnx.load_from_string(optimised_graph(one.model_path.read_bytes())).graph.node)
        for one in (made, calibrated)
    ]
    assert ran[0] == ran[1]


def test_training_that_does_not_help_leaves_what_was_calibrated(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ruined = ("quantize.mode=qat", "quantize.finetune.epochs=1", "quantize.finetune.learning_rate=5")
    made = quantize(trained.path, discs, tmp_path / "out", recipe(*ruined, "quantize.finetune.ema_decay=0"))
    record = (read_record(made.path) or {})["result"]
    assert record["mode"] == "ptq"
    assert record["miou"] == record["miou_ptq"] > record["miou_qat"]
    assert "training did not help: the graph stays as it was calibrated" in capfd.readouterr().err
