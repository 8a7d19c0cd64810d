"""The two ends of a probe: what feeds a layer and what reads its result, as the layers around it would.

A layer stands between 1x1 convolutions, the doors, whose names begin with `door`. So its channels come as they do in a
network: in blocks in FP32, as the last axis in INT8.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.latency.kinds import Pair
from export.latency.layout import BLOCK

DOOR_NAME = "door"

_OPSET = 21
_IR_VERSION = 10
_REMOVED = ("Relu", "Clip")
"""Activations that only clip, to the range of the quantized result; the quantizer removes them."""


class Ends(ABC):
    """A graph under construction; a probe puts its operators between `source` and `sink`."""

    def __init__(self) -> None:
        self.feeds: dict[str, NDArray[Any]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._random = np.random.default_rng(0)
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Operators written in this context have names that begin with `name`."""
        self._part = name
        yield
        self._part = ""

    def feed(self, value: NDArray[Any]) -> str:
        """Add an input to the graph, to be fed with `value`."""
        name = f"{DOOR_NAME}_{len(self.feeds)}"
        self.feeds[name] = value
        return name

    @abstractmethod
    def source(self, channels: int, size: Pair, *, apart: bool = False) -> str:
        """A tensor NCHW, as an earlier layer gives it; `apart` from a convolution that could fuse with the next."""

    @abstractmethod
    def sink(self, tensor: str, channels: int) -> None:
        """Pass `tensor` NCHW on to a later layer."""

    @abstractmethod
    def between(self, tensor: str, *, like: str | None = None) -> str:
        """Pass `tensor` from one operator to the next; in integers with the scale of the source `like`, if given."""

    @abstractmethod
    def parameters(self, x: str, shape: tuple[int, ...], *, axis: int) -> tuple[str, str]:
        """Weight and bias of a convolution that reads `x`; `axis` of the weight is that of its output channels."""

    def in_float(self, shape: tuple[int, ...], channels_out: int) -> tuple[str, str]:
        """Weight and bias of a convolution that is never quantized."""
        return self.constant(self._values(shape)), self.constant(self._values((channels_out,)))

    @abstractmethod
    def activation(self, tensor: str, op: str) -> str:
        """The activation `op` of a tensor."""

    @abstractmethod
    def number(self) -> str:
        """A number for an operator to combine with a tensor."""

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """The result of an operator."""
        name = name or f"{self._part}_{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant, unquantized."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def output(self, tensor: str, dtype: int) -> None:
        """Make `tensor` an output of the graph."""
        name = f"{DOOR_NAME}_output_{len(self._outputs)}"
        self._nodes.append(helper.make_node("Identity", [tensor], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, None))

    def model(self) -> bytes:
        """The finished graph, serialised."""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in self.feeds.items()
        ]
        graph = helper.make_graph(self._nodes, "probe", inputs, self._outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        content: bytes = model.SerializeToString()
        return content

    def _convolution(self, x: str, channels_in: int, channels_out: int) -> str:
        """A 1x1 convolution at an end of a probe: a door."""
        name = f"{DOOR_NAME}_{len(self._nodes)}_convolution"
        parameters = self.parameters(x, (channels_out, channels_in, 1, 1), axis=0)
        return self.node("Conv", x, *parameters, name=name)

    def _values(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return self._random.normal(0, 0.05, shape).astype(np.float32)


class FloatEnds(Ends):
    """In FP32."""

    def source(self, channels: int, size: Pair, *, apart: bool = False) -> str:
        if channels < BLOCK:  # no convolution gives so few in blocks; only the first reads them, from the image
            return self.feed(self._values((1, channels, *size)))
        out = self._convolution(self.feed(self._values((1, 1, *size))), 1, channels)
        return self.node("MaxPool", out, kernel_shape=[1, 1], name=f"{out}_apart") if apart else out

    def sink(self, tensor: str, channels: int) -> None:
        out = self._convolution(tensor, channels, BLOCK)
        # One pixel, so that the reorder at the end of a probe is never mistaken for the layer.
        self.output(self.node("GlobalAveragePool", out, name=f"{out}_mean"), TensorProto.FLOAT)

    def between(self, tensor: str, *, like: str | None = None) -> str:
        del like
        return tensor

    def parameters(self, x: str, shape: tuple[int, ...], *, axis: int) -> tuple[str, str]:
        del x
        return self.constant(self._values(shape)), self.constant(self._values((shape[axis],)))

    def activation(self, tensor: str, op: str) -> str:
        bounds = [self.constant(np.array(bound, np.float32)) for bound in (0, 6)] if op == "Clip" else []
        return self.node(op, tensor, *bounds)

    def number(self) -> str:
        return self.constant(np.array(0.5, np.float32))


class IntegerEnds(Ends):
    """U8 activations, S8 weights per channel, QDQ, as `compress quantize` writes them."""

    def __init__(self) -> None:
        super().__init__()
        self._scales: dict[str, float] = {}
        """Scale of every tensor that was quantized."""

    def source(self, channels: int, size: Pair, *, apart: bool = False) -> str:
        del apart  # quantization stands between them
        pixels = self.feed(self._random.integers(0, 256, (1, *size, 1), dtype=np.uint8))
        image = self._dequantized(self.node("Transpose", pixels, perm=[0, 3, 1, 2]), self._new_scale())
        return self.between(self._convolution(image, 1, channels))

    def sink(self, tensor: str, channels: int) -> None:
        out = self._convolution(self.between(tensor) if tensor not in self._scales else tensor, channels, BLOCK)
        quantized = self.node("QuantizeLinear", out, *self._scale(self._new_scale()))
        self.output(self.node("Transpose", quantized, perm=[0, 2, 3, 1]), TensorProto.UINT8)

    def between(self, tensor: str, *, like: str | None = None) -> str:
        scale = self._new_scale() if like is None else self._scales[like]
        return self._dequantized(self.node("QuantizeLinear", tensor, *self._scale(scale)), scale)

    def parameters(self, x: str, shape: tuple[int, ...], *, axis: int) -> tuple[str, str]:
        count = shape[axis]
        scales = self._random.uniform(0.005, 0.02, count).astype(np.float32)
        weight = self._random.integers(-63, 64, shape).astype(np.int8)
        bias = self._random.integers(-99, 99, count).astype(np.int32)
        # The runtime fuses Q/DQ into a convolution only where the bias's scale is the product of the other two.
        return self._constant(weight, scales, axis), self._constant(bias, scales * np.float32(self._scales[x]), 0)

    def activation(self, tensor: str, op: str) -> str:
        return tensor if op in _REMOVED else self.node(op, self.between(tensor))

    def number(self) -> str:
        return self._dequantized(self.constant(np.array(255, np.uint8)), self._new_scale())

    def _constant(self, values: NDArray[Any], scales: NDArray[np.float32], axis: int) -> str:
        zeros = self.constant(np.zeros(len(scales), values.dtype))
        return self.node("DequantizeLinear", self.constant(values), self.constant(scales), zeros, axis=axis)

    def _dequantized(self, tensor: str, scale: float) -> str:
        name = self.node("DequantizeLinear", tensor, *self._scale(scale))
        self._scales[name] = scale
        return name

    def _scale(self, scale: float) -> tuple[str, str]:
        return self.constant(np.array(scale, np.float32)), self.constant(np.array(0, np.uint8))

    def _new_scale(self) -> float:
        """A scale unlike every other: tensors of one scale would be joined without any arithmetic."""
        return 0.02 + 0.001 * len(self._nodes)
