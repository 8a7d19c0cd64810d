"""Bundles for what is not here, which no clock of this machine judges, and bundles that come from elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.quantizing import interrupt, patch, recipe

from compress.checkpoint import Checkpoint
from compress.quantize import quantize
from compress.steps import read_record
from export.bundle import Bundle, verify


@pytest.mark.parametrize("target", ["arm", "avx2"])
def test_a_bundle_for_another_processor_is_not_judged_by_the_clock_of_this_one(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    clock: Callable[[float, float], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    target: str,
) -> None:
    """No operator is timed in other forms, and a gain is not asked for."""
    clock(4.0, 5.0)
    patch(monkeypatch, "instruction_set", lambda: "amx", "compress.quantize.targets")
    patch(monkeypatch, "Rewriter", lambda *_: pytest.fail("its clock was asked"), "compress.quantize.workbench")
    settings = f"quantize.target={target}", "quantize.force=false", "quantize.rewrites=true"
    made = quantize(trained.path, discs, tmp_path / "out", recipe(*settings, "quantize.calibration=minmax"))
    record = (read_record(made.path) or {})["result"]
    assert (record["timed_for_target"], record["speedup"]) == (False, 0.8)
    assert (made.manifest.target, made.manifest.float_layers) == (target, ())
    assert f"made for {target}, and this machine" in capfd.readouterr().err


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_a_bundle_for_another_runtime_is_proven_and_verified_here(
    trained: Checkpoint, discs: Path, tmp_path: Path, clock: Callable[[float, float], None], target: str
) -> None:
    """However long it takes here, which says nothing of there: it is not refused, and the record says so."""
    clock(4.0, 5.0)
    made = quantize(
        trained.path,
        discs,
        tmp_path / "out",
        recipe(f"quantize.target={target}", "quantize.force=false", "quantize.calibration=minmax"),
    )
    assert max(verify(made.path).golden_differing.values()) == 0
    assert (made.manifest.target, made.manifest.precision, made.manifest.float_layers) == (target, "int8", ())
    record = (read_record(made.path) or {})["result"]
    assert (record["target"], record["timed_for_target"], record["speedup"]) == (target, False, 0.8)
    assert record["miou"] > 0.9
    kinds = {
        onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in onnx.load(made.model_path).graph.initializer
    }
    assert (np.dtype(np.uint8) in kinds) == (target == "openvino")


def test_a_bundle_of_another_kind_of_machine_is_not_up_to_date(
    int8_bundle: Bundle, trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forms, and the bits of its weights, are those of the machine that `auto` was."""
    moved = tmp_path / int8_bundle.path.name
    shutil.copytree(int8_bundle.path, moved)
    patch(monkeypatch, "_quantize", interrupt)
    assert quantize(trained.path, discs, moved, recipe()).manifest == int8_bundle.manifest
    patch(monkeypatch, "instruction_set", lambda: "abacus", "compress.quantize.workbench")
    with pytest.raises(KeyboardInterrupt):
        quantize(trained.path, discs, moved, recipe())
