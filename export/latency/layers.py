"""A float graph, as `export.to_onnx` writes it, as the list of layers that the runtime will spend its time in.

What the runtime computes together is one layer: an activation, and an addition, with the convolution before it.
Where a float tensor changes between blocked and plain channels, that is a layer too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from export.errors import UsageError
from export.graph import SizedGraph, attributes, layer_name
from export.latency.kinds import DOOR, OTHER, TO_BLOCKED, TO_PLAIN, LayerKey, LayerKind, Pair
from export.latency.layout import ACTIVATIONS, BINARY, BLOCK, POOLS, blocked_tensors
from export.latency.linear import Linear
from export.runtime import IMAGE

_AT_THE_DOOR = ("Transpose", "Cast", *BINARY)
_NOTHING = ("Identity", "Dropout", "Constant")


@dataclass(frozen=True)
class Layer:
    """One layer of a network whose widths are not chosen yet."""

    name: str
    kind: LayerKind
    channels_in: Linear
    channels_out: Linear

    def at(self, widths: Mapping[str, int]) -> LayerKey:
        """The layer with these widths of the groups.

        Raises UsageError for a group without a width.
        """
        return LayerKey(self.kind, self.channels_in.at(widths), self.channels_out.at(widths))


def layers_of(graph: onnx.ModelProto, *, size: Pair, widths: Mapping[str, Linear] | None = None) -> tuple[Layer, ...]:
    """The layers of `graph` for one image of `size` (height, width), in the order in which they run.

    `widths` maps names of weights of Conv and ConvTranspose to their output channels. Those that it does not name keep
    what they have; a depthwise convolution has as many as its input.
    Raises ShapeError for a size that the graph does not take, UsageError for a weight that it does not have.
    """
    widths = widths or {}
    sized = SizedGraph(graph, size)
    if unknown := sorted(widths.keys() - sized.weights.keys()):
        raise UsageError(f"the graph has no weights {', '.join(unknown)}; name the initializers of its convolutions")
    return tuple(_Walk(sized, widths).layers())


def unmodelled(layers: Iterable[Layer]) -> tuple[str, ...]:
    """ONNX names of the operators whose time no table has, so that a prediction leaves them out."""
    return tuple(sorted({layer.kind.variant for layer in layers if layer.kind.op == OTHER}))


class _Walk:
    """A walk from the image to the mask, with the channels of every tensor that was passed."""

    def __init__(self, graph: SizedGraph, widths: Mapping[str, Linear]) -> None:
        self._graph = graph
        self._widths = widths
        self._blocked = blocked_tensors(graph)
        self._forms: dict[str, Linear] = {}
        self._door = {IMAGE}
        self._within: set[str] = set()
        """Outputs of nodes that are part of an earlier layer."""
        self._reordered: set[str] = set()
        self._layers: list[Layer] = []

    def layers(self) -> list[Layer]:
        for node in self._graph.nodes:
            arithmetic_of_sizes = len(self._graph.shape(node.output[0])) < 2
            if node.output[0] in self._within or node.op_type == "Constant" or arithmetic_of_sizes:
                continue
            maps = self._graph.maps(node)
            if node.op_type in _AT_THE_DOOR and maps and self._door.issuperset(maps):
                self._open_door(node)
            else:
                self._reorder(node)
                self._visit(node)
        return self._layers

    def _visit(self, node: onnx.NodeProto) -> None:
        match node.op_type:
            case "Conv" | "ConvTranspose" if _is_plain(node) and self._graph.maps(node):
                self._convolution(node)
            case "Concat" if attributes(node)["axis"] == 1:
                forms = [self._form(name) for name in node.input]
                self._single(node, sum(forms, Linear()), inputs=len(forms))
            case "Resize":
                found = attributes(node)
                mode = f"{found.get('mode', 'nearest')} {found.get('coordinate_transformation_mode', 'half_pixel')}"
                self._single(node, variant=mode)
            case "DepthToSpace":
                self._depth_to_space(node)
            case "ArgMax":
                self._argmax(node)
            case op if op in POOLS:
                self._single(node, **_window(node))
            case op if op in BINARY:
                self._single(node, variant=self._operand(node))
            case op if op in ACTIVATIONS or op == "ReduceMean":
                self._single(node)
            case op if op in _NOTHING:
                self._forms[node.output[0]] = self._kept(node)
            case op:
                self._single(node, op=OTHER, variant=op)

    def _open_door(self, node: onnx.NodeProto) -> None:
        """Add one layer for all that is done to the image before the first convolution, where its channels move."""
        out = node.output[0]
        self._door.add(out)
        self._forms[out] = Linear(self._graph.channels(out))
        if node.op_type == "Transpose":
            size = self._graph.size(out)
            self._add(node, LayerKind(DOOR, size, size), self._forms[out])

    def _reorder(self, node: onnx.NodeProto) -> None:
        """Add layers for inputs in another layout than the node takes; each tensor is reordered once."""
        wants_blocks = node.output[0] in self._blocked
        for name in self._graph.maps(node):
            # A convolution reads the few channels of an image in plain order.
            few = self._graph.channels(name) < BLOCK
            if wants_blocks == (name in self._blocked) or name in self._reordered or (wants_blocks and few):
                continue
            self._reordered.add(name)
            size = self._graph.size(name)
            kind = LayerKind(TO_BLOCKED if wants_blocks else TO_PLAIN, size, size)
            self._layers.append(Layer(f"{name} before {node.name}", kind, self._form(name), self._form(name)))

    def _convolution(self, node: onnx.NodeProto) -> None:
        weight, channels_in = node.input[1], self._form(node.input[0])
        groups = attributes(node).get("group", 1)
        full_in, full_out = self._graph.channels(node.input[0]), self._graph.channels(node.output[0])
        depthwise = 1 < groups == full_in == full_out
        channels_out = channels_in if depthwise else self._widths.get(weight, Linear(full_out))
        end, added, activation = self._fused(node) if node.op_type == "Conv" else (node.output[0], False, "")
        kind = LayerKind(
            node.op_type,
            self._graph.size(node.input[0]),
            self._graph.size(end),
            groups=0 if depthwise else groups,
            activation=activation,
            sum=added,
            **_window(node),
        )
        self._forms[node.output[0]] = self._forms[end] = channels_out
        self._layers.append(Layer(layer_name(weight), kind, channels_in, channels_out))

    def _fused(self, node: onnx.NodeProto) -> tuple[str, bool, str]:
        """What a convolution gives with all that is fused into it: the tensor, whether it adds, the activation."""
        end, added, activation = node.output[0], False, ""
        user = self._graph.only_user(end)
        if user is not None and self._adds_in_place(user):
            added, end = True, user.output[0]
            self._within.add(end)
            user = self._graph.only_user(end)
        if user is not None and user.op_type in ACTIVATIONS:
            activation, end = user.op_type, user.output[0]
            self._within.add(end)
        return end, added, activation

    def _adds_in_place(self, node: onnx.NodeProto) -> bool:
        out = node.output[0]
        aligned = self._graph.channels(out) % BLOCK == 0
        return node.op_type == "Add" and out in self._blocked and out not in self._within and aligned

    def _depth_to_space(self, node: onnx.NodeProto) -> None:
        block = attributes(node)["blocksize"]
        channels = self._form(node.input[0])
        self._single(node, channels, kernel=(block, block))
        # Channels that cannot be divided evenly at every width are not pruned, so they stay as they are.
        self._forms[node.output[0]] = channels.divided(block**2) or Linear(self._graph.channels(node.output[0]))

    def _argmax(self, node: onnx.NodeProto) -> None:
        size = self._graph.size(node.input[0])
        self._add(node, LayerKind("ArgMax", size, size), self._form(node.input[0]))
        user = self._graph.only_user(node.output[0])
        if user is not None and user.op_type == "Cast":
            self._within.add(user.output[0])

    def _operand(self, node: onnx.NodeProto) -> str:
        """What the second operand of an elementwise operator is."""
        inputs = self._graph.maps(node)
        if len(inputs) < 2:
            return "constant"
        return "map" if len({self._graph.shape(name) for name in inputs}) == 1 else "channel"

    def _single(
        self, node: onnx.NodeProto, channels: Linear | None = None, *, op: str | None = None, **fields: Any
    ) -> None:
        """Add a layer with one width: that of its input, unless `channels` says otherwise."""
        sizes = [self._graph.size(name) for name in self._graph.maps(node)] or [(1, 1)]
        kind = LayerKind(op or node.op_type, max(sizes), self._graph.size(node.output[0]), **fields)
        self._add(node, kind, channels or self._kept(node))

    def _add(self, node: onnx.NodeProto, kind: LayerKind, channels: Linear) -> None:
        self._forms[node.output[0]] = channels
        self._layers.append(Layer(node.name or node.output[0], kind, channels, channels))

    def _kept(self, node: onnx.NodeProto) -> Linear:
        """The channels of the input that has as many as the output, else the output's own."""
        channels = self._graph.channels(node.output[0])
        inputs = (name for name in self._graph.maps(node) if self._graph.channels(name) == channels)
        return next((self._form(name) for name in inputs), Linear(channels))

    def _form(self, tensor: str) -> Linear:
        return self._forms.get(tensor) or Linear(self._graph.channels(tensor))


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether it runs over height and width with explicit padding, as torch's exporter writes it."""
    found = attributes(node)
    return len(found.get("kernel_shape", ())) == 2 and found.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _window(node: onnx.NodeProto) -> dict[str, Any]:
    """Kernel, strides, pads and dilations, as far as the node has them."""
    found = attributes(node)
    names = {"kernel": "kernel_shape", "strides": "strides", "pads": "pads", "dilations": "dilations"}
    return {field: tuple(found[name]) for field, name in names.items() if name in found}
