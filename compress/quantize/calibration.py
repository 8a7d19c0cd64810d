"""Activation ranges from calibration images, in bounded memory.

Batches of one image go through ONNX Runtime's calibrators two at a time, so the peak does not grow with the
number of images (the library's own loop keeps every activation until the end).
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator

from export.images import U8
from export.runtime import IMAGE

Method = Literal["minmax", "entropy", "percentile"]

CHUNK = 2

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Sequence[U8]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, U8] | None:
        image = next(self._images, None)
        return None if image is None else {IMAGE: image[None]}


def activation_ranges(
    graph: onnx.ModelProto, images_HWC: Iterator[U8], method: Method, op_types: Sequence[str]
) -> TensorsData:
    """Ranges of every tensor that the operators in `op_types` touch.

    `images_HWC` are what the model is given (resized and padded), one at a time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "float.onnx"
        onnx.save(graph, str(path))
        calibrator = create_calibrator(
            path,
            list(op_types),
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=_METHODS[method],
        )
        # The histogram calibrators print what they do; standard output is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            while chunk := list(islice(images_HWC, CHUNK)):
                calibrator.collect_data(_Reader(chunk))
            return calibrator.compute_data()
