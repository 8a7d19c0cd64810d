"""The INT8 graph as served gives the masks of the graph as written, or never becomes a bundle."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.quantizing import patch, recipe

from compress.checkpoint import Checkpoint
from compress.quantize import quantize
from compress.quantize.kernels import look_at_kernels
from compress.quantize.ptq import with_quantized_logits
from export.bundle import Bundle
from export.errors import ParityError
from export.images import U8
from export.parity import Kernels, Parity, int8_parity
from export.runtime import OnnxModel


def test_int8_parity_was_proven_on_real_images(int8_bundle: Bundle) -> None:
    parity = json.loads((int8_bundle.path / "parity.json").read_text())
    assert parity["kind"] == "optimised-unoptimised"
    assert parity["images"] == "validation split"
    assert {case["batch"] for case in parity["cases"]} == {1, 2, 3, 8}
    assert len({(case["height"], case["width"]) for case in parity["cases"]}) == 3


def test_a_graph_that_is_optimised_wrongly_never_becomes_a_bundle(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(graph: Any) -> Any:
        both, step = with_quantized_logits(graph)
        for tensor in both.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.int8 and array.ndim == 4:
                tensor.CopyFrom(numpy_helper.from_array(array // 2, tensor.name))
        return both, step

    patch(monkeypatch, "with_quantized_logits", other, "compress.quantize.proof")
    with pytest.raises(ParityError, match="optimised-unoptimised parity does not hold") as raised:
        quantize(trained.path, discs, tmp_path / "out", recipe("quantize.calibration=minmax"))
    assert raised.value.exit_status == 1
    assert not (tmp_path / "out").exists()
    # What was measured is reported, and the graph is kept where nobody takes it for a bundle.
    assert re.search(r"mIoU 0\.\d{4} in float, 0\.\d{4} in INT8\. INT8 takes \d+\.\d\d ms", str(raised.value))
    kept = Path(str(raised.value).split("it is kept in ")[1].split(",")[0])
    assert OnnxModel(kept, threads=1).masks(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 8, 8)
    assert json.loads((kept.parent / "parity.json").read_text())["cases"]
    assert not (kept.parent / "manifest.json").exists()


@pytest.mark.parametrize(("target", "is_told"), [("arm", True), ("avx2", False)])
def test_a_parity_that_this_processor_spoils_is_told_so(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, is_told: bool
) -> None:
    def spoilt(*given: Any, **named: Any) -> Parity:
        parity = int8_parity(*given, **named)
        cases = tuple(case.model_copy(update={"differing_pixels": 0.5}) for case in parity.cases)
        return parity.model_copy(update={"cases": cases})

    patch(monkeypatch, "instruction_set", lambda: "avx2", "compress.quantize.targets")
    patch(monkeypatch, "int8_parity", spoilt, "compress.quantize.proof")
    patch(monkeypatch, "look_at_kernels", lambda *_: None, "compress.quantize.proof")
    settings = (f"quantize.target={target}", "quantize.calibration=minmax")
    with pytest.raises(ParityError) as raised:
        quantize(trained.path, discs, tmp_path / "out", recipe(*settings))
    assert ("quantize there, or on a machine with VNNI" in str(raised.value)) == is_told


def test_masks_that_differ_though_no_kernel_errs_are_rounding_that_grew(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def grown(*given: Any, **named: Any) -> Parity:
        parity = int8_parity(*given, **named)
        return parity.model_copy(
            update={"cases": tuple(case.model_copy(update={"differing_pixels": 0.005}) for case in parity.cases)}
        )

    patch(monkeypatch, "int8_parity", grown, "compress.quantize.proof")
    made = quantize(trained.path, discs, tmp_path / "out", recipe("quantize.calibration=minmax"))
    kernels = json.loads((made.path / "parity.json").read_text())["kernels"]
    assert kernels["count"] > 10
    assert kernels["steps"] <= 1
    assert "gives other masks than the graph as written; of " in capfd.readouterr().err

    def errs(model: onnx.ModelProto, images_NHWC: U8) -> Kernels:
        found = look_at_kernels(model, images_NHWC)
        assert found is not None
        return found.model_copy(update={"steps": 3})

    patch(monkeypatch, "look_at_kernels", errs, "compress.quantize.proof")
    with pytest.raises(ParityError, match="is wrong: off by 3 of 255 steps"):
        quantize(trained.path, discs, tmp_path / "other", recipe("quantize.calibration=minmax"))
