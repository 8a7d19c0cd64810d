"""INT8 has to be faster than its float parent, and a first layer that is not stays in float."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.quantizing import patch, recipe

from benchmarks.ops.bench import bench
from compress.checkpoint import Checkpoint
from compress.quantize import quantize
from compress.quantize.judge import Judge
from compress.quantize.rewrites.folded import Folded
from compress.steps import read_record
from compress.train.loop import Fit
from export import bundle
from export.bundle import verify
from export.errors import WorkFailedError
from export.manifest import FloatLayer
from export.runtime import OnnxModel
from export.timing import Samples


def test_int8_that_is_not_faster_is_refused_unless_forced(
    trained: Checkpoint, discs: Path, tmp_path: Path, clock: Callable[[float, float], None]
) -> None:
    clock(4.0, 5.0)
    with pytest.raises(WorkFailedError, match=r"INT8 takes 5\.00 ms, its float parent 4\.00 ms.*--force"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false"))
    assert not (tmp_path / "out").exists()
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=true"))
    assert made.manifest.latency is not None
    assert (made.manifest.latency.milliseconds, made.manifest.latency.milliseconds_parent) == (5.0, 4.0)
    with pytest.raises(WorkFailedError, match="quantization gains nothing here"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false"))
    assert bundle.load(tmp_path / "out").manifest == made.manifest


def test_a_training_whose_graph_gains_nothing_is_not_lost_to_force(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the training INT8 seems faster, after it not; --force, as the message says, ships what was trained."""
    timed: list[float] = []

    def times(_: Judge, rounds: int, **models: OnnxModel) -> dict[str, Samples]:
        timed.append(5.0 if timed else 3.0)
        return {name: Samples((4.0 if name == "parent" else timed[-1],) * rounds) for name in models}

    monkeypatch.setattr(Judge, "times", times)
    learned = ("quantize.mode=qat", "quantize.finetune.epochs=1", "quantize.calibration=minmax")
    with pytest.raises(WorkFailedError, match="with --force"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false", *learned))
    monkeypatch.setattr(Fit, "_train_epoch", lambda *_: pytest.fail("it was trained again"))
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=true", *learned))
    assert "miou_qat" in (read_record(made.path) or {})["result"]


def test_a_busy_moment_does_not_decide_for_ever(
    trained: Checkpoint, discs: Path, tmp_path: Path, clock: Callable[[float, float], None]
) -> None:
    clock(4.0, 5.0)
    with pytest.raises(WorkFailedError, match="quantization gains nothing here"):
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false"))
    clock(5.0, 4.0)
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false"))
    assert made.manifest.latency is not None
    assert made.manifest.latency.milliseconds == 4.0


def test_int8_that_is_faster_needs_no_force(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    clock: Callable[[float, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock(9.0, 3.0)
    patch(monkeypatch, "instruction_set", lambda: "avx2", "compress.quantize.targets")
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.force=false", "quantize.target=avx2"))
    record = read_record(made.path)
    assert record is not None
    assert (record["result"]["speedup"], record["result"]["timed_for_target"]) == (3.0, True)
    assert record["result"]["seven_bit_weights"]
    assert made.manifest.target == "avx2"


def test_a_first_layer_that_is_faster_in_float_stays_so_and_all_say_why(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest, the record, and `compress bench ops`."""

    def fake(models: dict[str, Any], *, rounds: int) -> dict[str, Samples]:
        times = {"plain": 5.0, "rewritten": 4.0, "parent": 9.0, "child": 4.0}
        return {name: Samples((times[name],) * rounds) for name in models}

    patch(monkeypatch, "interleaved", fake, "compress.quantize.judge")
    monkeypatch.setattr(Judge, "kernel_times", lambda _, graphs: {name: {} for name in graphs})
    # A single form: applying and timing the others takes longer than the rest of the test.
    patch(monkeypatch, "integer_forms", lambda n: (Folded(2, True, n),), "compress.quantize.rewrites.rewriter")
    made = quantize(
        trained.path, discs, tmp_path / "out", recipe("quantize.rewrites=true", "quantize.calibration=minmax")
    )
    verify(made.path)
    why = "faster in float: the graph takes 4.00 ms, with it in INT8 5.00 ms"
    assert made.manifest.float_layers[0] == FloatLayer(layer="stem.0", reason=why)
    stem = (read_record(made.path) or {})["result"]["stem"]
    assert (stem["layer"], stem["form"]) == ("stem.0", "float")
    assert stem["graph_ms"] == {"int8": 5.0, "float": 4.0}
    assert set(stem["layer_ms"]) == {"plain", "2 columns read and made at once"}
    report = bench([made.path], threads=1, runs=1, peak=False, command="compress bench ops it")
    assert (why, "manifest") in {(node.reason, node.told_by) for node in report.bundles[0].floats}
    assert "stem.0" not in report.bundles[0].not_in_float
