"""Bundles for other processors and runtimes, which times on this machine cannot judge, and bundles made elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.quantizing import interrupt, patch, recipe

from compress.checkpoint import Checkpoint
from compress.quantize import quantize
from compress.quantize.workbench import made_on, up_to_date
from compress.settings.quantize import Target
from compress.steps import StepPlan, read_record, running
from export.bundle import Bundle, verify
from export.machine import SATURATING, instruction_set


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
    """No operator is timed in other forms, and no speed-up is required."""
    if target == "arm" and instruction_set() in SATURATING:
        pytest.skip("products of 8 bits are cut off by this processor, so that its graph is not proven here")
    clock(4.0, 5.0)
    patch(monkeypatch, "instruction_set", lambda: "amx", "compress.quantize.targets")
    patch(monkeypatch, "Rewriter", lambda *_: pytest.fail("its clock was asked"), "compress.quantize.workbench")
    settings = f"quantize.target={target}", "quantize.force=false", "quantize.rewrites=true"
    made = quantize(trained.path, discs, tmp_path / "out", recipe(*settings, "quantize.calibration=minmax"))
    record = (read_record(made.path) or {})["result"]
    assert (record["timed_for_target"], record["speedup"]) == (False, 0.8)
    assert (made.manifest.target, made.manifest.float_layers, made.manifest.half_floats) == (target, (), False)
    assert f"made for {target}, and this machine" in capfd.readouterr().err


@pytest.mark.parametrize(("target", "half_floats"), [("tensorrt", True), ("openvino", True), ("openvino", False)])
def test_a_bundle_for_another_runtime_is_proven_and_verified_here(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    clock: Callable[[float, float], None],
    target: str,
    half_floats: bool,
) -> None:
    """Its time here says nothing about that runtime, so it is not refused for being slow, and the record says so."""
    clock(4.0, 5.0)
    made = quantize(
        trained.path,
        discs,
        tmp_path / "out",
        recipe(
            f"quantize.target={target}",
            f"quantize.half_floats={str(half_floats).lower()}",
            "quantize.force=false",
            "quantize.calibration=minmax",
        ),
    )
    assert max(verify(made.path).golden_differing.values()) == 0
    assert (made.manifest.target, made.manifest.precision, made.manifest.float_layers) == (target, "int8", ())
    assert made.manifest.half_floats is half_floats
    record = (read_record(made.path) or {})["result"]
    assert (record["target"], record["timed_for_target"], record["speedup"]) == (target, False, 0.8)
    assert record["miou"] > 0.9
    kinds = {
        onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in onnx.load(made.model_path).graph.initializer
    }
    assert (np.dtype(np.uint8) in kinds) == (target == "openvino")


def test_what_no_clock_decided_is_not_up_to_date_on_the_processor_that_it_is_for(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    clock: Callable[[float, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is made again there, with timings, and that result is up to date everywhere."""
    out, wanted = tmp_path / "out", recipe("quantize.target=avx2", "quantize.calibration=minmax")

    def on(machine: str, killed_at: str | None = None) -> bool | None:
        """Whether the bundle that `quantize` gives on `machine` was timed; None if the run reached `killed_at`."""
        with monkeypatch.context() as patched:
            patch(patched, "instruction_set", lambda: machine, "compress.quantize.targets")
            if killed_at is not None:
                patch(patched, killed_at, interrupt)
            try:
                made = quantize(trained.path, discs, out, wanted)
            except KeyboardInterrupt:
                return None
        latency = made.manifest.latency
        assert latency is not None
        timed: bool = (read_record(out) or {})["result"]["timed_for_target"]
        assert (latency.milliseconds_parent, latency.milliseconds) == ((9.0, 3.0) if timed else (4.0, 5.0))
        return timed

    clock(4.0, 5.0)
    assert on("amx", killed_at="golden_images") is None
    assert on("amx") is False
    assert on("avx512_vnni", killed_at="_quantize") is False
    clock(9.0, 3.0)
    assert on("avx2", killed_at="_quantize") is None
    assert on("amx", killed_at="_quantize") is False
    assert on("avx2") is True
    assert [on(machine, killed_at="_quantize") for machine in ("avx2", "amx")] == [True, True]


@pytest.mark.parametrize(
    ("target", "machine", "kept"),
    [("avx2", "avx2", False), ("avx2", "amx", True), ("vnni", "avx_vnni", False), ("tensorrt", "avx2", True)],
)
def test_what_an_earlier_version_made_without_a_clock_is_not_up_to_date_there_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target, machine: str, kept: bool
) -> None:
    """Earlier versions noted that in the result alone."""
    patch(monkeypatch, "instruction_set", lambda: machine, "compress.quantize.targets")
    earlier = StepPlan("quantize", {}, {"target": target})
    with running(tmp_path / "out", earlier) as step:
        step.record(earlier, {"timed_for_target": False})
    now = StepPlan("quantize", {}, {"target": target, **made_on(target)})
    assert (up_to_date(tmp_path / "out", now, target) is not None) == kept


def test_what_a_kill_left_on_another_processor_is_not_gone_on_with(
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    clock: Callable[[float, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The times that it holds are the other processor's."""
    wanted = recipe("quantize.target=avx2", "quantize.calibration=minmax")
    clock(4.0, 5.0)
    with monkeypatch.context() as killed:
        patch(killed, "instruction_set", lambda: "amx", "compress.quantize.targets")
        patch(killed, "parity_images", interrupt, "compress.quantize.proof")
        with pytest.raises(KeyboardInterrupt):
            quantize(trained.path, discs, tmp_path / "out", wanted)
    clock(9.0, 3.0)
    patch(monkeypatch, "instruction_set", lambda: "avx2", "compress.quantize.targets")
    assert (read_record(quantize(trained.path, discs, tmp_path / "out", wanted).path) or {})["result"]["speedup"] == 3.0


def test_a_bundle_of_another_kind_of_machine_is_not_up_to_date(
    int8_bundle: Bundle, trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forms, and the bits of its weights, are for the machine that `auto` stood for."""
    moved = tmp_path / int8_bundle.path.name
    shutil.copytree(int8_bundle.path, moved)
    patch(monkeypatch, "_quantize", interrupt)
    assert quantize(trained.path, discs, moved, recipe()).manifest == int8_bundle.manifest
    patch(monkeypatch, "instruction_set", lambda: "abacus", "compress.quantize.workbench")
    with pytest.raises(KeyboardInterrupt):
        quantize(trained.path, discs, moved, recipe())
