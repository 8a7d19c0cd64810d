"""Calibration, equalised channels and corrected biases are each chosen by mIoU, once."""

import json
from pathlib import Path

import onnx
import pytest
from support.quantizing import BUDGET, interrupt, patch, recipe

from compress.checkpoint import Checkpoint
from compress.quantize import quantize
from compress.steps import read_record
from export.bundle import Bundle


def test_calibration_is_chosen_by_what_it_keeps(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = quantize(trained.path, discs, tmp_path / "out", recipe())
    found = {way: kept["miou"] for way, kept in json.loads((made.path / "calibrations.json").read_text()).items()}
    assert list(found) == ["minmax", "mse", "percentile", "entropy"]
    record = (read_record(made.path) or {})["result"]
    assert record["calibration"] == max(found, key=lambda method: found[method])
    assert record["miou"] == max(found.values())
    assert record["calibrations"] == found
    assert f"calibration by {record['calibration']}: mIoU minmax " in capfd.readouterr().err


def test_calibration_is_chosen_once(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is killed after the choice resumes with it, whatever a second measurement would say."""
    with monkeypatch.context() as killed:
        patch(killed, "parity_images", interrupt, "compress.quantize.proof")
        with pytest.raises(KeyboardInterrupt):
            quantize(trained.path, discs, tmp_path / "out", recipe())
    choice = next(tmp_path.rglob("calibrations.json"))
    figures = json.loads(choice.read_text())
    best = max(kept["miou"] for kept in figures.values())
    choice.write_text(json.dumps({**figures, "entropy": {"miou": best + 0.001, "missing": 0.0}}))
    made = quantize(trained.path, discs, tmp_path / "out", recipe())
    assert (read_record(made.path) or {})["result"]["calibration"] == "entropy"


def test_equalised_channels_leave_no_layer_in_float(
    spoilt: tuple[Path, set[str]],
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Equalising spreads what breaks INT8 over both layers, so none stays in float. Killed after the choice, the step
    resumes with it."""
    wanted = recipe(*BUDGET, "quantize.equalise=auto")
    with monkeypatch.context() as killed:
        patch(killed, "parity_images", interrupt, "compress.quantize.proof")
        with pytest.raises(KeyboardInterrupt):
            quantize(spoilt[0], discs, tmp_path / "out", wanted)
    tried = json.loads(next(tmp_path.rglob("equalisation.json")).read_text())
    found = {way: kept["miou"] for way, kept in tried.items()}
    assert found["with"] > found["without"] + 0.01
    words = f"channels equalised: mIoU {found['with']:.4f} instead of {found['without']:.4f}, kept"
    assert words in capfd.readouterr().err
    made = quantize(spoilt[0], discs, tmp_path / "out", wanted)
    assert words in capfd.readouterr().err
    assert made.manifest.float_layers == ()
    assert "equalisation.json" in made.manifest.files
    record = (read_record(made.path) or {})["result"]
    assert (record["equalised"], record["equalisation"], record["miou"]) == (True, found, found["with"])
    assert record["drop"] <= 0.01


def test_biases_are_corrected_where_that_keeps_more(
    trained: Checkpoint, discs: Path, tmp_path: Path, int8_bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    """`true` always corrects them, `auto` where that measures better; the record says which, and so does the output."""

    def biases(bundle: Bundle) -> list[bytes]:
        stored = onnx.load(str(bundle.model_path)).graph.initializer
        return [tensor.raw_data for tensor in stored if tensor.data_type == onnx.TensorProto.INT32 and tensor.dims]

    calibration = f"quantize.calibration={(read_record(int8_bundle.path) or {})['result']['calibration']}"
    plain, forced = biases(int8_bundle), recipe(calibration, "quantize.bias_correction=true")
    made = quantize(trained.path, discs, tmp_path / "forced", forced)
    record = (read_record(made.path) or {})["result"]
    assert record["bias_corrected"] is True
    assert biases(made) != plain
    found = record["bias_correction"]
    assert found["with"] == record["miou"]
    assert found["without"] == (read_record(int8_bundle.path) or {})["result"]["miou"]
    capfd.readouterr()
    made = quantize(trained.path, discs, tmp_path / "auto", recipe(calibration, "quantize.bias_correction=auto"))
    record = (read_record(made.path) or {})["result"]
    kept = found["with"] > found["without"]
    assert (record["bias_corrected"], record["bias_correction"]) == (kept, found)
    assert record["miou"] == max(found.values())
    assert (biases(made) != plain) == kept
    words = f"{found['with']:.4f} instead of {found['without']:.4f}, {'kept' if kept else 'not kept'}"
    assert f"biases corrected: mIoU {words}" in capfd.readouterr().err
