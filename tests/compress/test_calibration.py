"""Activation ranges: those of the library's own calibrators, in memory that does not grow with the images."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from support.networks import exported, random_unet

from compress.quantize import calibration
from compress.quantize.calibration import Method, activation_ranges
from compress.quantize.ptq import OP_TYPES
from export.images import U8
from export.to_onnx import with_outputs

IMAGES = [np.random.default_rng(i).integers(0, 40 * (i + 1), (16, 24, 1), dtype=np.uint8) for i in range(5)]


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return with_outputs(exported(random_unet()), "mask")


class Everything(CalibrationDataReader):  # type: ignore[misc]
    """All images, as the library wants them."""

    def __init__(self) -> None:
        self._images: Iterator[U8] = iter(IMAGES)

    def get_next(self) -> dict[str, U8] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


def all_at_once(graph: onnx.ModelProto, method: Method, folder: Path) -> TensorsData:
    onnx.save(graph, folder / "float.onnx")
    calibrator = create_calibrator(
        folder / "float.onnx",
        list(OP_TYPES),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=calibration._METHODS[method],
    )
    calibrator.collect_data(Everything())
    return calibrator.compute_data()


@pytest.mark.parametrize(("method", "tolerance"), [("minmax", 0.0), ("percentile", 0.05), ("entropy", 0.5)])
def test_ranges_are_those_of_the_library(
    graph: onnx.ModelProto, tmp_path: Path, method: Method, tolerance: float
) -> None:
    """Histograms that grow from chunk to chunk have other bins than one that sees everything, and entropy jumps between
    thresholds that are about as good."""
    ours = activation_ranges(graph, iter(IMAGES), method, OP_TYPES)
    theirs = all_at_once(graph, method, tmp_path)
    assert ours.data.keys() == theirs.data.keys()
    assert len(ours.data) > 20
    for name, found in ours.items():
        low, high = (np.asarray(x, dtype=np.float64).item() for x in found.range_value)
        expected = [np.asarray(x, dtype=np.float64).item() for x in theirs[name].range_value]
        width = expected[1] - expected[0]
        assert low == pytest.approx(expected[0], abs=tolerance * width), name
        assert high == pytest.approx(expected[1], abs=tolerance * width), name


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_nothing_is_printed(graph: onnx.ModelProto, method: Method, capfd: pytest.CaptureFixture[str]) -> None:
    activation_ranges(graph, iter(IMAGES[:2]), method, OP_TYPES)
    assert capfd.readouterr().out == ""


def test_images_are_asked_for_a_few_at_a_time(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = 0
    most = 0
    real = calibration._Reader.get_next

    def images() -> Iterator[U8]:
        nonlocal waiting, most
        for image in IMAGES:
            waiting += 1
            most = max(most, waiting)
            yield image

    def get_next(reader: calibration._Reader) -> dict[str, U8] | None:
        nonlocal waiting
        given = real(reader)
        waiting -= given is not None
        return given

    monkeypatch.setattr(calibration._Reader, "get_next", get_next)
    activation_ranges(graph, images(), "minmax", OP_TYPES)
    assert (waiting, most) == (0, calibration.CHUNK)


PEAK = """
import sys
import numpy as np
import onnx
from compress.quantize.calibration import activation_ranges
from compress.quantize.ptq import OP_TYPES
from export.machine import peak_memory_mib

graph, method, count = onnx.load(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rng = np.random.default_rng(0)
images = (rng.integers(0, 256, (128, 128, 1), dtype=np.uint8) for _ in range(count))
activation_ranges(graph, images, method, OP_TYPES)
print(peak_memory_mib())
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_memory_does_not_grow_with_the_images(graph: onnx.ModelProto, tmp_path: Path, method: str) -> None:
    """An image leaves 5 MiB of activations here: 56 more would take 280."""
    onnx.save(graph, tmp_path / "graph.onnx")
    few, many = (
        float(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(tmp_path / "graph.onnx"), method, str(count)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for count in (8, 64)
    )
    assert many < 1.3 * few
    assert many - few < 100
