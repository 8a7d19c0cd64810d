"""How fast this machine multiplies at best: products of large square matrices, whose weights the runtime has packed.

That is a convolution's work without the gathering of pixels, done by the same kernels: u8 by s8 in integers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.report.ops.results import Peak, PeakPoint
from export.manifest import Precision
from export.profiling import profiled

SIDES = (1024, 1536, 2048)
"""Large enough that little but multiplication is left, small enough to take milliseconds."""

RUNS = 3
"""Timed runs of each side in a turn, after those that warm up memory and caches."""

_OPERATORS: Mapping[Precision, str] = {"int8": "MatMulInteger", "fp32": "MatMul"}


class PeakProbe:
    """Times products of one precision, at several moments, so that a busy one does not decide."""

    def __init__(self, precision: Precision, threads: int) -> None:
        self.precision = precision
        self._threads = threads
        self._samples_ms: dict[int, list[float]] = {side: [] for side in SIDES}

    def take(self) -> None:
        """Time a few products of every size."""
        for side, samples_ms in self._samples_ms.items():
            model, feeds = _product(self.precision, side)
            for run in profiled(model, feeds, threads=self._threads, runs=RUNS):
                samples_ms.append(sum(kernel.microseconds for kernel in run) / 1e3)

    def peak(self) -> Peak:
        """The peak over all that was timed."""
        points = tuple(_point(side, tuple(samples)) for side, samples in self._samples_ms.items())
        best = max(point.gmacs_per_s for point in points)
        return Peak(precision=self.precision, op=_OPERATORS[self.precision], gmacs_per_s=best, points=points)


def _point(side: int, samples_ms: tuple[float, ...]) -> PeakPoint:
    best = min(samples_ms)
    return PeakPoint(side=side, milliseconds=best, gmacs_per_s=side**3 / best / 1e6, samples_ms=samples_ms)


def _product(precision: Precision, side: int) -> tuple[bytes, Mapping[str, NDArray[Any]]]:
    random = np.random.default_rng(0)
    shape = (side, side)
    a: NDArray[Any]
    b: NDArray[Any]
    if precision == "int8":
        a = random.integers(0, 256, shape, dtype=np.uint8)
        b = random.integers(-127, 128, shape, dtype=np.int8)
        read, given = TensorProto.UINT8, TensorProto.INT32
    else:
        a, b = (random.standard_normal(shape, dtype=np.float32) for _ in range(2))
        read, given = TensorProto.FLOAT, TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(_OPERATORS[precision], ["a", "b"], ["product"])],
        "peak",
        [helper.make_tensor_value_info("a", read, shape)],
        [helper.make_tensor_value_info("product", given, shape)],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString(), {"a": a}
