"""Activation ranges from calibration images: one pass in bounded memory, then ranges by any method.

Images go through ONNX Runtime's calibrator one at a time, so the peak does not grow with their number (the library's
own loop keeps every activation until the end), and they may differ in size. Of each tensor, the extremes and one
histogram are kept; every method works from these.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import HistogramCollector, TensorsData, create_calibrator

from compress.settings.quantize import Calibration
from export.errors import WorkFailedError
from export.images import U8
from export.runtime import IMAGE

METHODS: tuple[Calibration, ...] = get_args(Calibration)

BINS = 2048
PERCENTILE = 99.999
LEVELS = 255
"""Steps in the range of 8 bits."""

_ENTROPY_BINS = 512
_ENTROPY_LEVELS = 128
"""The library's search is written in Python; with all the bins it would take minutes for a network."""
_SHARES = np.linspace(1.0, 0.2, 81)

F64 = NDArray[np.float64]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Sequence[U8]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, U8] | None:
        image = next(self._images, None)
        return None if image is None else {IMAGE: image[None]}


class _Collector(HistogramCollector):  # type: ignore[misc]
    """The library's collector, but one that refuses values that are not finite.

    The library's own counts no NaN after the first image, and cannot begin with one.
    """

    def __init__(self, order: Sequence[str]) -> None:
        """`order` is that in which tensors are computed, so that an error names the first that is not finite."""
        # "entropy" is the method that counts values by sign.
        super().__init__("entropy", False, BINS, _ENTROPY_LEVELS, PERCENTILE, "same")
        self._order = order

    def collect(self, name_to_arr: Mapping[str, Sequence[NDArray[Any]]]) -> Any:
        wrong = {name for name, arrays in name_to_arr.items() if not all(np.isfinite(array).all() for array in arrays)}
        if wrong:
            first, *others = [name for name in self._order if name in wrong]
            more = f", nor are {len(others)} after it" if others else ""
            raise WorkFailedError(
                f"on calibration images the activation {first} is not finite{more}; look for NaN or infinity in the "
                "weights, and for a layer or a normalisation whose results are too large for float32"
            )
        return super().collect(name_to_arr)


@dataclass(frozen=True)
class Histogram:
    """The values of one tensor over all calibration images."""

    counts: NDArray[np.int64]
    edges: F64
    """One more than counts, evenly spaced, as far below zero as above it."""
    low: float
    high: float
    """The extremes."""


@dataclass(frozen=True)
class Statistics:
    """What the calibration images showed of every tensor that the quantizer asks about."""

    histograms: Mapping[str, Histogram]
    _found: dict[Calibration, dict[str, tuple[float, float]]] = field(default_factory=dict, init=False, repr=False)

    def ranges(self, method: Calibration) -> TensorsData:
        """The ends of every tensor's range by `method`: searched for once, but copied each time, because the quantizer
        changes what it is given."""
        if method not in self._found:
            find = _FINDERS[method]
            self._found[method] = {name: find(histogram) for name, histogram in self.histograms.items()}
        found = self._found[method].items()
        return TensorsData(
            CalibrationMethod.MinMax, {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in found}
        )


def observe(graph: onnx.ModelProto, images_HWC: Iterator[U8], op_types: Sequence[str]) -> Statistics:
    """Run `graph` on the images and count the values of every tensor that the operators in `op_types` touch.

    `images_HWC` are what the model is given (resized and padded), one at a time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "float.onnx"
        onnx.save(graph, str(path))
        calibrator = create_calibrator(
            path,
            list(op_types),
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Entropy,
        )
        calibrator.collector = _Collector([name for node in graph.graph.node for name in node.output])
        # The calibrator prints what it does; standard output is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            for image in images_HWC:
                calibrator.collect_data(_Reader([image]))
    found = calibrator.collector.histogram_dict
    return Statistics({name: _histogram(*entry[:4]) for name, entry in found.items()})


def _histogram(counts: Any, edges: Any, low: Any, high: Any) -> Histogram:
    return Histogram(np.asarray(counts, np.int64), np.asarray(edges, np.float64), float(low), float(high))


def _minmax(histogram: Histogram) -> tuple[float, float]:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram) -> tuple[float, float]:
    """The middle 99.999 % of the values."""
    below = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - PERCENTILE / 100) / 2
    low = histogram.edges[np.searchsorted(below, tail)]
    high = histogram.edges[np.searchsorted(below, 1 - tail) + 1]
    return max(float(low), histogram.low), min(float(high), histogram.high)


def _mse(histogram: Histogram) -> tuple[float, float]:
    """Where the expected squared error is least: a smaller range has smaller steps, but cuts off more.

    A value inside is off by at most half a step, uniformly: step**2 / 12 on average, except for zero, which is exact.
    A value outside is off by its distance. Each end is searched in turn, over shares of the extreme.
    Source: Banner et al. 2019 (arXiv:1810.05723), with the histogram in place of a fitted distribution.
    """
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    rounded = np.where(np.abs(centres) > histogram.edges[-1] / len(centres), histogram.counts, 0)

    def error(low: float, high: float) -> float:
        outside = np.maximum(centres - high, 0) + np.maximum(low - centres, 0)
        step = (high - low) / LEVELS
        return float((histogram.counts * outside**2).sum() + rounded[outside == 0].sum() * step**2 / 12)

    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    extremes = low, high
    for _ in range(2):
        high = float(min(_SHARES * extremes[1], key=lambda end: error(low, float(end))))
        low = float(min(_SHARES * extremes[0], key=lambda end: error(float(end), high)))
    return low, high


def _entropy(histogram: Histogram) -> tuple[float, float]:
    """Where the distribution changes least by Kullback-Leibler divergence: the library's search, on merged bins.

    Source: Migacz 2017, "8-bit inference with TensorRT".
    """
    merged = -(-len(histogram.counts) // _ENTROPY_BINS)
    half = -(-len(histogram.counts) // (2 * merged)) * merged
    missing = half - len(histogram.counts) // 2
    counts = np.pad(histogram.counts, missing).reshape(-1, merged).sum(axis=1)
    width = histogram.edges[1] - histogram.edges[0]
    edges = np.linspace(-half * width, half * width, len(counts) + 1).astype(np.float32)
    collector = HistogramCollector("entropy", False, len(counts), _ENTROPY_LEVELS, PERCENTILE, "same")
    entry = (counts, edges, np.float32(histogram.low), np.float32(histogram.high))
    low, high = collector.get_entropy_threshold(entry, _ENTROPY_LEVELS)
    return float(low), float(high)


_FINDERS: Mapping[Calibration, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": _minmax,
    "mse": _mse,
    "percentile": _percentile,
    "entropy": _entropy,
}
