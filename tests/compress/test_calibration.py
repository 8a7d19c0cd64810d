"""Activation ranges match those of the library's calibrators, in memory that does not grow with the images."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from support.networks import exported, random_unet

from compress.quantize import calibration
from compress.quantize.calibration import BINS, F64, METHODS, Histogram, Statistics, observe
from compress.quantize.ptq import OP_TYPES
from compress.settings.quantize import Calibration
from export.errors import WorkFailedError
from export.graph import copied
from export.images import U8
from export.to_onnx import with_outputs

IMAGES = [np.random.default_rng(i).integers(0, 40 * (i + 1), (16, 24, 1), dtype=np.uint8) for i in range(5)]


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return with_outputs(exported(random_unet()), "mask")


class Everything(CalibrationDataReader):  # type: ignore[misc]
    """Images in the form that the library reads."""

    def __init__(self, images: Sequence[U8]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, U8] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


LIBRARY = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"num_bins": BINS, "symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 128}),
}


def all_at_once(graph: onnx.ModelProto, images: Sequence[U8], method: str, folder: Path) -> TensorsData:
    onnx.save(graph, folder / "float.onnx")
    chosen, options = LIBRARY[method]
    calibrator = create_calibrator(
        folder / "float.onnx",
        list(OP_TYPES),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=chosen,
        extra_options=options,
    )
    calibrator.collect_data(Everything(images))
    return calibrator.compute_data()


@pytest.mark.parametrize(
    ("method", "images", "tolerance"),
    [("minmax", IMAGES, 0.0), ("percentile", IMAGES, 0.05), ("entropy", IMAGES[-1:], 0.005)],
    ids=["minmax", "percentile", "entropy"],
)
def test_ranges_are_those_of_the_library(
    graph: onnx.ModelProto, tmp_path: Path, method: Calibration, images: Sequence[U8], tolerance: float
) -> None:
    """A histogram that grows from image to image has other bins than one that sees everything. Entropy is compared on
    a single image, because other bins make it jump between thresholds that are about equally good."""
    ours = observe(graph, iter(images), OP_TYPES).ranges(method)
    theirs = all_at_once(graph, images, method, tmp_path)
    assert ours.data.keys() == theirs.data.keys()
    assert len(ours.data) > 20
    for name, found in ours.items():
        low, high = (np.asarray(x, dtype=np.float64).item() for x in found.range_value)
        expected = [np.asarray(x, dtype=np.float64).item() for x in theirs[name].range_value]
        width = expected[1] - expected[0]
        assert low == pytest.approx(expected[0], abs=tolerance * width), name
        assert high == pytest.approx(expected[1], abs=tolerance * width), name


def test_what_the_quantizer_does_to_its_ranges_stays_with_it(graph: onnx.ModelProto) -> None:
    """It narrows ranges to what an activation lets through; the next graph may leave that activation in float."""
    seen = observe(graph, iter(IMAGES[:2]), OP_TYPES)
    before = {name: found.range_value for name, found in seen.ranges("mse").items()}
    given = seen.ranges("mse")
    for name in before:
        given[name] = next(iter(given.values()))
    assert {name: found.range_value for name, found in seen.ranges("mse").items()} == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named_where_it_begins(graph: onnx.ModelProto, value: float) -> None:
    """The error names only the first such activation, and counts those after it."""
    spoilt = copied(graph)
    first = next(node for node in spoilt.graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in spoilt.graph.initializer if tensor.name == first.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(value), weight.name))
    with pytest.raises(
        WorkFailedError, match=rf"the activation {first.output[0]} is not finite, nor are \d+ after it; look "
    ):
        observe(spoilt, iter(IMAGES), OP_TYPES)


def test_nothing_is_printed(graph: onnx.ModelProto, capfd: pytest.CaptureFixture[str]) -> None:
    seen = observe(graph, iter(IMAGES[:2]), OP_TYPES)
    for method in METHODS:
        seen.ranges(method)
    assert capfd.readouterr().out == ""


def test_images_are_asked_for_one_at_a_time_and_may_differ_in_size(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = most = 0
    real = calibration._Reader.get_next

    def images() -> Iterator[U8]:
        nonlocal waiting, most
        for index, image in enumerate(IMAGES):
            waiting += 1
            most = max(most, waiting)
            yield image[: 8 + 4 * (index % 2)]

    def get_next(reader: calibration._Reader) -> dict[str, U8] | None:
        nonlocal waiting
        given = real(reader)
        waiting -= given is not None
        return given

    monkeypatch.setattr(calibration._Reader, "get_next", get_next)
    seen = observe(graph, images(), OP_TYPES)
    assert (waiting, most) == (0, 1)
    pixels = {histogram.counts.sum() for histogram in seen.histograms.values()}
    assert sum(8 + 4 * (index % 2) for index in range(len(IMAGES))) * IMAGES[0].shape[1] in pixels


def histogram(values: F64) -> Histogram:
    """A histogram as the calibrator keeps it: symmetric about zero."""
    end = float(np.abs(values).max())
    counts, edges = np.histogram(values, BINS, range=(-end, end))
    return Histogram(counts, edges, float(values.min()), float(values.max()))


def squared_error(values: F64, low: float, high: float) -> float:
    """The mean squared error of rounding to 256 levels from `low` to `high`."""
    step = (high - low) / 255
    return float(np.square(np.clip(np.round((values - low) / step), 0, 255) * step + low - values).mean())


@pytest.mark.parametrize("shape", ["relu", "signed", "outlier"])
def test_mse_is_no_worse_than_any_other_way_to_cut(shape: str) -> None:
    """Compared with the error of real rounding over a grid of ends."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 200_000)
    if shape == "relu":
        values = np.maximum(values, 0)
    if shape == "outlier":
        values[0] = 60
    found = Statistics({"x": histogram(values)}).ranges("mse")["x"].range_value
    low, high = (float(end) for end in found)
    shares = np.linspace(0.05, 1, 40)
    best = min(squared_error(values, a * min(values.min(), 0), b * values.max()) for a in shares for b in shares)
    assert values.min() <= low <= 0 < high <= values.max()
    assert squared_error(values, low, high) < 1.1 * best
    if shape == "outlier":
        assert high < 50


PEAK = """
import sys
import numpy as np
import onnx
from compress.quantize.calibration import observe
from compress.quantize.ptq import OP_TYPES
from export.machine import peak_memory_mib

graph, count = onnx.load(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
images = (rng.integers(0, 256, (32, 32, 1), dtype=np.uint8) for _ in range(count))
observe(graph, images, OP_TYPES)
print(peak_memory_mib())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """An image makes more than a quarter of a MiB of activations here: a thousand would take over 250 MiB."""
    onnx.save(graph, tmp_path / "graph.onnx")
    few, many = (
        float(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(tmp_path / "graph.onnx"), str(count)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for count in (10, 1000)
    )
    assert many < 1.15 * few
