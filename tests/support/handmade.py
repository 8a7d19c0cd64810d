"""Float graphs in our form, written node by node: an export takes seconds, this takes none.

net = Handmade(channels=1)
x = net.conv("stem", net.image, 8)
graph = net.graph(net.conv("head", net.relu(x), 3, kernel=1))
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.images import U8

_NEAREST: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


class Handmade:
    """Nodes between the image and the logits; every method gives the name of what it makes."""

    def __init__(self, channels: int = 1, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.channels = {"div": channels}
        self.image = "div"
        self.weights: dict[str, NDArray[np.float32]] = {
            name: np.array(128, np.float32) for name in ("mean", "deviation")
        }
        self.integers: dict[str, NDArray[np.int64]] = {}
        self._inputs = channels
        self._nodes = [
            helper.make_node("Transpose", ["image"], ["turned"], "turn", perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["turned"], ["cast"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Sub", ["cast", "mean"], ["sub"], "sub"),
            helper.make_node("Div", ["sub", "deviation"], ["div"], "div"),
        ]

    def conv(self, name: str, source: str, width: int, *, kernel: int = 3, group: int = 1, bias: bool = True) -> str:
        """A convolution that keeps the size."""
        into = self.channels[source] // group
        fan = into * kernel * kernel
        weight = self.rng.normal(0, fan**-0.5, (width, into, kernel, kernel)).astype(np.float32)
        self.weights[f"model.{name}.weight"] = weight
        inputs = [source, f"model.{name}.weight"]
        if bias:
            self.weights[f"model.{name}.bias"] = self.rng.normal(0, 0.2, width).astype(np.float32)
            inputs.append(f"model.{name}.bias")
        return self.add("Conv", inputs, name, width, group=group, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2)

    def add(self, operator: str, inputs: list[str], name: str, width: int | None = None, **attributes: Any) -> str:
        """Any operator; by default as wide as its first input."""
        self._nodes.append(helper.make_node(operator, inputs, [name], f"node_{name}", **attributes))
        self.channels[name] = width or self.channels[inputs[0]]
        return name

    def relu(self, source: str) -> str:
        return self.add("Relu", [source], f"{source}_relu")

    def pool(self, source: str) -> str:
        return self.add("MaxPool", [source], f"{source}_pool", kernel_shape=[2, 2], strides=[2, 2])

    def up(self, source: str) -> str:
        """Twice the size, by nearest neighbours."""
        self.weights["twice"] = np.array([1, 1, 2, 2], np.float32)
        return self.add("Resize", [source, "", "twice"], f"{source}_up", **_NEAREST)

    def to_half(self, source: str) -> str:
        """Half the size, rounded down, computed in floats as torch's older exporter writes it."""
        self.weights["half"] = np.array([0.5, 0.5], np.float32)
        for name, number in (("zero", 0), ("two", 2), ("four", 4)):
            self.integers[name] = np.array([number], np.int64)
        shape = self.add("Shape", [source], f"{source}_shape")
        sides = self.add("Slice", [shape, "two", "four"], f"{source}_sides")
        floats = self.add("Cast", [sides], f"{source}_floats", to=TensorProto.FLOAT)
        halves = self.add("Floor", [self.add("Mul", [floats, "half"], f"{source}_halves")], f"{source}_floor")
        whole = self.add("Cast", [halves], f"{source}_whole", to=TensorProto.INT64)
        rest = self.add("Slice", [shape, "zero", "two"], f"{source}_rest")
        return self._resized(source, self.add("Concat", [rest, whole], f"{source}_size", axis=0), f"{source}_smaller")

    def to_size_of(self, source: str, other: str) -> str:
        """As large as `other`, which has as many channels."""
        return self._resized(source, self.add("Shape", [other], f"{other}_like"), f"{source}_again")

    def _resized(self, source: str, size: str, name: str) -> str:
        return self.add("Resize", [source, "", "", size], name, **_NEAREST)

    def beside(self, *sources: str) -> str:
        width = sum(self.channels[source] for source in sources)
        return self.add("Concat", list(sources), "_".join(sources), width, axis=1)

    def graph(self, logits: str) -> onnx.ModelProto:
        """From the uint8 image to the mask and `logits`."""
        ends = [
            helper.make_node("ArgMax", [logits], ["argmax"], "argmax", axis=1, keepdims=0),
            helper.make_node("Cast", ["argmax"], ["mask"], "mask", to=TensorProto.UINT8),
            helper.make_node("Identity", [logits], ["logits"], "logits"),
        ]
        free = ["batch", "height", "width"]
        made = helper.make_graph(
            [*self._nodes, *ends],
            "handmade",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, [*free, self._inputs])],
            [
                helper.make_tensor_value_info("mask", TensorProto.UINT8, free),
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", self.channels[logits], *free[1:]]),
            ],
            [numpy_helper.from_array(array, name) for name, array in (self.weights | self.integers).items()],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def small_unet(*, spread: float = 1.0, bias: bool = True) -> onnx.ModelProto:
    """One level of a UNet, four classes. The ranges of an activation's channels differ by a factor of up to `spread`;
    the layers that read it undo that factor, so that the answers do not depend on it."""
    net = Handmade()
    first = net.relu(net.conv("stem", net.image, 8, bias=bias))
    deep = net.relu(net.conv("down", net.pool(first), 8, bias=bias))
    both = net.beside(first, net.up(deep))
    last = net.relu(net.conv("fuse", both, 8, bias=bias))
    logits = net.conv("head", last, 4, kernel=1)
    more = np.geomspace(1 / spread, 1, 8).astype(np.float32)
    for layer, readers in {"stem": [("down", 0), ("fuse", 0)], "down": [("fuse", 8)], "fuse": [("head", 0)]}.items():
        net.weights[f"model.{layer}.weight"] *= more.reshape(-1, 1, 1, 1)
        if bias:
            net.weights[f"model.{layer}.bias"] *= more
        for reader, start in readers:
            net.weights[f"model.{reader}.weight"][:, start : start + 8] /= more.reshape(1, -1, 1, 1)
    return net.graph(logits)


def with_a_smaller_inside() -> onnx.ModelProto:
    """A layer at half the size, which is computed in floats."""
    net = Handmade()
    stem = net.relu(net.conv("stem", net.image, 8))
    inner = net.relu(net.conv("inner", net.to_half(stem), 8))
    return net.graph(net.conv("head", net.to_size_of(inner, stem), 4, kernel=1))


def with_a_norm() -> onnx.ModelProto:
    """A GroupNorm after the first convolution, whose channels lie so far from zero that their squares hide their small
    variance."""
    net = Handmade()
    first = net.conv("stem", net.image, 16)
    net.weights["model.stem.bias"] += 20
    net.weights["model.norm.weight"] = net.rng.uniform(0.5, 2, 16).astype(np.float32)
    net.weights["model.norm.bias"] = net.rng.normal(0, 0.3, 16).astype(np.float32)
    both = ["model.norm.weight", "model.norm.bias"]
    normed = net.add("GroupNormalization", [first, *both], "norm", num_groups=4, epsilon=1e-5)
    return net.graph(net.conv("head", net.relu(normed), 3, kernel=1))


def with_eca() -> onnx.ModelProto:
    """Channel attention (ECA): a convolution over the means of neighbouring channels gives each channel its weight."""
    net = Handmade()
    first = net.relu(net.conv("stem", net.image, 16))
    net.weights["model.eca.weight"] = np.array([[[0.5, 2, -1]]], np.float32)
    for name, axes in {"pixels": [2, 3], "middle": [1], "ends": [2, 3]}.items():
        net.weights[name] = np.array(axes, np.int64)
    means = net.add("Unsqueeze", [net.add("ReduceMean", [first, "pixels"], "means", keepdims=0), "middle"], "row", 1)
    mixed = net.add("Conv", [means, "model.eca.weight"], "eca", pads=[1, 1], kernel_shape=[3])
    gate = net.add("Sigmoid", [net.add("Squeeze", [mixed, "middle"], "column", 16)], "gate")
    gated = net.add("Mul", [first, net.add("Unsqueeze", [gate, "ends"], "gates")], "gated")
    return net.graph(net.conv("head", gated, 3, kernel=1))


def blocks(count: int, seed: int = 0, channels: int = 1) -> list[U8]:
    """Images HWC of 32x48, neighbouring pixels alike as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 6, channels), dtype=np.uint8)
    return list(np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2))
