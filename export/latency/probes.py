"""A tiny graph that runs one layer as it runs within a network, and which part of its profile is that layer's time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export.errors import UsageError
from export.latency.ends import DOOR_NAME, Ends, FloatEnds, IntegerEnds
from export.latency.grid import STEP
from export.latency.kinds import TO_BLOCKED, TO_PLAIN, LayerKey, LayerKind, Pair
from export.latency.layout import ACTIVATIONS, BINARY, BLOCK, POOLS
from export.manifest import Precision
from export.profiling import Kernel

_REORDERS = ("ReorderInput", "ReorderOutput")
_KEEPS_SCALE = ("MaxPool", "Resize", "DepthToSpace")
_LAYER, _REFERENCE = "layer", "reference"

REFERENCE = LayerKey(LayerKind("Conv", (32, 32), (32, 32), kernel=(3, 3), pads=(1, 1, 1, 1)), 64, 64)
"""38 million multiply-accumulates: long enough to be timed well, short enough to be timed beside every layer."""


@dataclass(frozen=True)
class Probe:
    """A graph, what it is fed, and which of its operators count.

    The reference convolution stands in it too: the two are timed within milliseconds of each other.
    """

    model: bytes
    feeds: Mapping[str, NDArray[Any]]
    reorder: tuple[str, tuple[int, ...]] | None = None
    """Operator and shape of the change of layout that is the layer; where it is None, such changes count as nothing."""

    def microseconds(self, run: Sequence[Kernel]) -> float:
        """The layer's part of one run."""
        return sum(kernel.microseconds for kernel in run if self._counts(kernel))

    def reference_microseconds(self, run: Sequence[Kernel]) -> float:
        """The reference convolution's part of it."""
        return sum(kernel.microseconds for kernel in run if kernel.name.startswith(_REFERENCE))

    def _counts(self, kernel: Kernel) -> bool:
        if self.reorder is not None:
            return (kernel.op, kernel.shape) == self.reorder
        return kernel.op not in _REORDERS and not kernel.name.startswith((DOOR_NAME, _REFERENCE))


def probe_of(key: LayerKey, precision: Precision) -> Probe:
    """The probe of a layer that takes time in this precision (`LayerKind.takes_time`).

    Raises UsageError for an operator that is not modelled.
    """
    ends: Ends = FloatEnds() if precision == "fp32" else IntegerEnds()
    with ends.part(_REFERENCE):
        _write(ends, REFERENCE)
    with ends.part(_LAYER):
        _write(ends, key)
    operator = {TO_PLAIN: "ReorderOutput", TO_BLOCKED: "ReorderInput"}.get(key.kind.op)
    shape = (1, key.channels_out, *key.kind.size)
    return Probe(ends.model(), ends.feeds, None if operator is None else (operator, shape))


def _write(ends: Ends, key: LayerKey) -> None:
    kind = key.kind
    match kind.op:
        case "Conv" | "ConvTranspose":
            _convolution(ends, key)
        case "Door":
            _door(ends, key)
        case "ToPlain":
            x = ends.source(1, kind.size)
            parameters = ends.parameters(x, (key.channels_out, 1, 1, 1), axis=0)
            ends.output(ends.node("Conv", x, *parameters), TensorProto.FLOAT)
        case "ToBlocked":
            ends.sink(ends.feed(np.zeros((1, key.channels_in, *kind.size), np.float32)), key.channels_in)
        case "Concat":
            parts = [ends.source(part, kind.size) for part in _parts(key.channels_out, kind.inputs)]
            ends.sink(ends.node("Concat", *parts, axis=1), key.channels_out)
        case "ArgMax":
            index = ends.node("ArgMax", ends.source(key.channels_in, kind.size), axis=1, keepdims=0)
            ends.output(ends.node("Cast", index, to=TensorProto.UINT8), TensorProto.UINT8)
        case op if op in BINARY:
            x = ends.source(key.channels_in, kind.size, apart=True)
            ends.sink(ends.node(op, x, _operand(ends, key)), key.channels_out)
        case op:
            x = ends.source(key.channels_in, kind.size, apart=op in ACTIVATIONS)
            out, channels_out = _of_one_map(ends, x, key), key.channels_out
            if op == "DepthToSpace":
                channels_out //= kind.kernel[0] * kind.kernel[1]
            ends.sink(ends.between(out, like=x) if op in _KEEPS_SCALE else out, channels_out)


def _convolution(ends: Ends, key: LayerKey) -> None:
    kind, into, out = key.kind, key.channels_in, key.channels_out
    groups = kind.groups or into
    transposed = kind.op == "ConvTranspose"
    shape = (into, out // groups) if transposed else (out, into // groups)
    x = ends.source(into, kind.size)
    if transposed and groups > 1:  # in float even in an INT8 graph
        parameters = ends.in_float((*shape, *kind.kernel), out)
    else:
        parameters = ends.parameters(x, (*shape, *kind.kernel), axis=1 if transposed else 0)
    result = ends.node(kind.op, x, *parameters, group=groups, **_window(kind))
    if kind.sum:
        result = ends.node("Add", ends.between(result), ends.source(out, kind.size_out, apart=True))
    if kind.activation:
        result = ends.activation(result, kind.activation)
    ends.sink(result, out)


def _of_one_map(ends: Ends, x: str, key: LayerKey) -> str:
    kind = key.kind
    if kind.op in ACTIVATIONS:
        return ends.activation(x, kind.op)
    if kind.op == "ReduceMean":
        return ends.node("ReduceMean", x, ends.constant(np.array([2, 3], np.int64)), keepdims=1)
    if kind.op == "DepthToSpace":
        return ends.node("DepthToSpace", x, blocksize=kind.kernel[0], mode="CRD")
    if kind.op == "Resize":
        mode, _, coordinates = kind.variant.partition(" ")
        scales = np.array([1, 1, *_factors(kind)], np.float32)
        rounding = {"nearest_mode": "floor"} if mode == "nearest" else {}
        scale = ends.constant(scales)
        return ends.node("Resize", x, "", scale, mode=mode, coordinate_transformation_mode=coordinates, **rounding)
    if kind.op in POOLS:
        return ends.node(kind.op, x, **({} if kind.op.startswith("Global") else _window(kind)))
    raise UsageError(f"{key} is not modelled and cannot be timed; leave it out of the keys to measure")


def _operand(ends: Ends, key: LayerKey) -> str:
    """The second operand of an elementwise operator."""
    if key.kind.variant == "constant":
        return ends.number()
    size = (1, 1) if key.kind.variant == "channel" else key.kind.size
    return ends.source(key.channels_in, size, apart=True)


def _door(ends: Ends, key: LayerKey) -> None:
    pixels = ends.feed(np.zeros((1, *key.kind.size, key.channels_in), np.uint8))
    image = ends.node("Cast", ends.node("Transpose", pixels, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    middle = ends.constant(np.array(128, np.float32))
    ends.output(ends.node("Div", ends.node("Sub", image, middle), middle), TensorProto.FLOAT)


def _window(kind: LayerKind) -> dict[str, Any]:
    return {
        "kernel_shape": kind.kernel,
        "strides": kind.strides,
        "pads": kind.pads,
        **({} if kind.op == "AveragePool" else {"dilations": kind.dilations}),
    }


def _factors(kind: LayerKind) -> Pair | tuple[float, float]:
    return kind.size_out[0] / kind.size[0], kind.size_out[1] / kind.size[1]


def _parts(channels: int, count: int) -> list[int]:
    """`channels` in `count` nearly equal parts, of whole blocks on any machine where there are enough."""
    step = next((step for step in (STEP, BLOCK) if channels >= count * step), 1)
    part = channels // count // step * step
    return [channels - part * (count - 1), *[part] * (count - 1)]
