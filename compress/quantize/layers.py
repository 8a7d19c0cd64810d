"""The parts of a graph that can be left in float one by one: layers, each with the activation computed with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from compress.quantize.graph import is_of_a_norm, on_sizes
from export.graph import CONVOLUTIONS, layer_name

_WEIGHTED = (*CONVOLUTIONS, "Gemm", "MatMul")
OPERATORS = (*_WEIGHTED, "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Concat", "Add", "Mul")
"""Operators with a scale of their own. Max pooling, resizing and transposing keep their input's, and an activation that
only clips belongs to its layer."""
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Layer:
    """An operator with weights or a scale of its own."""

    name: str
    """That of its weight's module in the network; that of the operator where it has no weight."""
    operator: str
    nodes: tuple[str, ...]
    """Their names in the graph: the operator, and its activation."""
    tensors: tuple[str, ...]
    """What these give; the last is the layer's result."""
    readers: tuple[str, ...] = ()
    """Names of the layers that read it, also through pooling or resizing."""

    @property
    def result(self) -> str:
        """The tensor that leaves the layer."""
        return self.tensors[-1]


def layers_of(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers of a float graph whose types are inferred, in its order; arithmetic on sizes of tensors is none, nor
    are the parts of a norm."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = tuple(_layers(model, readers))
    names = {layer.nodes[0]: layer.name for layer in found}
    return tuple(replace(layer, readers=_readers(layer.result, readers, names)) for layer in found)


def first_layer(model: onnx.ModelProto, image: str) -> Layer | None:
    """The convolution of a float graph that alone reads the tensor `image`; None where there is none."""
    readers = [node.name for node in model.graph.node if image in node.input]
    found = [layer for layer in layers_of(model) if layer.operator == "Conv" and layer.nodes[0] in readers]
    return found[0] if len(found) == len(readers) == 1 else None


def _layers(model: onnx.ModelProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> Iterator[Layer]:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    counts = {value.name for value in graph.value_info if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT}
    counts.update(name for node in on_sizes(model) for name in node.output)
    for node in graph.node:
        if node.op_type in OPERATORS and node.output[0] not in counts and not is_of_a_norm(node):
            after = readers.get(node.output[0], ())
            with_it = after if len(after) == 1 and after[0].op_type in _ACTIVATIONS else ()
            nodes = (node, *with_it)
            yield Layer(
                _name(node, weights),
                node.op_type,
                tuple(part.name for part in nodes),
                tuple(part.output[0] for part in nodes),
            )


def _readers(tensor: str, readers: Mapping[str, Sequence[onnx.NodeProto]], names: Mapping[str, str]) -> tuple[str, ...]:
    found: list[str] = []
    for node in readers.get(tensor, ()):
        further = [names[node.name]] if node.name in names else _readers(node.output[0], readers, names)
        found.extend(name for name in further if name not in found)
    return tuple(found)


def _name(node: onnx.NodeProto, weights: set[str]) -> str:
    has_weight = node.op_type in _WEIGHTED and node.input[1] in weights
    # The exporter transposes the weight of a matrix product, which then has no name of its own.
    named = has_weight and (node.op_type in CONVOLUTIONS or node.input[1].endswith(".weight"))
    return layer_name(node.input[1]) if named else str(node.name)
