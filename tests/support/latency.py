"""A fake machine for latency tables: tests know what its kernels take, and it is disturbed as real ones are.

machine = FakeMachine(monkeypatch)
machine.speed = 0.5     # from now on everything takes twice as long
measure_table(keys, path=path, ...)
assert machine.timed == 3
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx
import pytest
from numpy.typing import NDArray

from export.latency.kinds import LayerKey, LayerKind
from export.profiling import Kernel

OVERHEAD = 2.0
"""Microseconds that any kernel takes, whatever its size."""

PER_MAC = 1e-3


def conv(channels_in: int, channels_out: int, *, pixels: int = 8) -> LayerKey:
    """A 1x1 convolution, which needs no padding."""
    return LayerKey(LayerKind("Conv", (pixels, pixels), (pixels, pixels)), channels_in, channels_out)


def expected_microseconds(key: LayerKey) -> float:
    """What an undisturbed `FakeMachine` takes for a convolution."""
    kind = key.kind
    return OVERHEAD + PER_MAC * key.channels_in * key.channels_out * prod(kind.kernel) * prod(kind.size_out)


class FakeMachine:
    """Stands in for the runtime's profiler in `export.latency.measure`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.speed = 1.0
        self.timed = 0
        self.threads: set[int] = set()
        monkeypatch.setattr("export.latency.measure.profiled", self._profiled)

    def _profiled(
        self, model: bytes, feeds: Mapping[str, NDArray[Any]], *, threads: int, runs: int
    ) -> tuple[tuple[Kernel, ...], ...]:
        self.timed += 1
        self.threads.add(threads)
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
        kernels = [kernel for node in graph.node if (kernel := self._kernel(graph, node)) is not None]
        # One run in three is disturbed: the kernels that this hits take up to five times as long.
        return tuple(
            tuple(
                Kernel(k.name, k.op, k.shape, k.microseconds * (1 + (run + place) % 5 * (run % 3 == 0)) / self.speed)
                for place, k in enumerate(kernels)
            )
            for run in range(runs)
        )

    def _kernel(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> Kernel | None:
        if node.op_type != "Conv":
            return None
        dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
        producers = {name: other for other in graph.node for name in other.output}
        weight = producers[node.input[1]].input[0] if node.input[1] in producers else node.input[1]
        shape = tuple(shapes[node.output[0]])
        macs = prod(dims[weight]) * prod(shape[2:])
        return Kernel(node.output[0], "Conv", shape, OVERHEAD + PER_MAC * macs)
