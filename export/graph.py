"""What is asked of ONNX graphs: their nodes, attributes, names, and the shape of every tensor at one image size."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx

from export.errors import ShapeError
from export.runtime import IMAGE, MASK, outputs

CONVOLUTIONS = ("Conv", "ConvTranspose")


class SizedGraph:
    """A float graph at one image size and batch 1: its nodes that lead to the mask, and the shape of every tensor.

    Raises ShapeError for an image size that the graph does not take.
    """

    def __init__(self, model: onnx.ModelProto, size: tuple[int, int]) -> None:
        self.weights: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self._shapes = {**_shapes(model, size), **self.weights}
        self.nodes = _leading_to_the_end(model.graph)
        self.constants = {name for n in self.nodes if n.op_type == "Constant" for name in n.output} | set(self.weights)
        self._uses = Counter(name for node in self.nodes for name in node.input)
        self._users = {name: node for node in self.nodes for name in node.input}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Empty for a scalar."""
        return self._shapes.get(tensor, ())

    def macs(self, node: onnx.NodeProto) -> int:
        """Multiply-accumulates of a convolution on one image; 0 for other nodes, which are small beside them."""
        if node.op_type not in CONVOLUTIONS:
            return 0
        tensor = node.output[0] if node.op_type == "Conv" else node.input[0]
        return prod(self.shape(node.input[1])) * prod(self.size(tensor))

    def channels(self, tensor: str) -> int:
        shape = self.shape(tensor)
        return shape[1] if len(shape) > 1 else 1

    def size(self, tensor: str) -> tuple[int, int]:
        """Height and width; 1, 1 for a tensor that is no map."""
        shape = self.shape(tensor)
        return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)

    def maps(self, node: onnx.NodeProto) -> list[str]:
        """Inputs of a node that are maps (NCHW) computed from the image: neither weights nor sizes of tensors."""
        return [name for name in node.input if len(self.shape(name)) == 4 and name not in self.constants]

    def only_user(self, tensor: str) -> onnx.NodeProto | None:
        """The node that reads `tensor`, when a single one does."""
        return self._users[tensor] if self._uses[tensor] == 1 else None


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of all of `model`, which may be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, text decoded."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def leading_to(nodes: Sequence[onnx.NodeProto], tensors: Collection[str]) -> list[onnx.NodeProto]:
    """Those of `nodes` that `tensors` are computed from, in their order."""
    wanted, kept = set(tensors), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_read(node))
            kept.append(node)
    return kept[::-1]


def _read(node: onnx.NodeProto) -> set[str]:
    """The tensors that `node` reads, also within graphs of its own, such as the branches of an If."""
    found = set(node.input)
    for inner in inner_graphs(node):
        found.update(*map(_read, inner.node), (output.name for output in inner.output))
    return found


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that `node` holds: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def layer_name(weight: str) -> str:
    """What a layer is called, from the name that the exporter, and after it the quantizer, gives its weight."""
    return weight.removesuffix("_quantized").removeprefix("model.").removesuffix(".weight")


def _shapes(model: onnx.ModelProto, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    sized = copied(model)
    dims = next(value for value in sized.graph.input if value.name == IMAGE).type.tensor_type.shape.dim
    for dim, number in zip(dims, (1, *size), strict=False):
        dim.dim_value = number
    for output in sized.graph.output:
        output.type.tensor_type.ClearField("shape")  # else the inferred one must match the dynamic one
    del sized.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(sized, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ShapeError(
            f"the graph does not take images of {size[0]}x{size[1]}; give a multiple of what it needs ({error})"
        ) from error
    values = [*graph.input, *graph.value_info, *graph.output]
    known = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    unknown = [name for node in sized.graph.node for name in node.output if name and 0 in known.get(name, (0,))]
    return known | _shapes_of_a_run(sized, unknown, (1, *size, dims[3].dim_value)) if unknown else known


def _shapes_of_a_run(
    model: onnx.ModelProto, names: Sequence[str], image: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors `names` as they are when the graph runs: what inference cannot follow, such as sizes
    that are computed in floats."""
    tapped = copied(model)
    del tapped.graph.output[:]
    for name in names:  # their shapes as outputs, not they themselves: those would all be held in memory
        shape = f"{name}/shape of a run"
        tapped.graph.node.append(onnx.helper.make_node("Shape", [name], [shape]))
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None))
    try:
        found = outputs(tapped.SerializeToString(), {IMAGE: np.zeros(image, np.uint8)}, optimised=False)
    except Exception as error:  # classes of onnxruntime's bindings, with no common base but Exception
        raise ShapeError(f"the graph cannot be run on an image of {image[1]}x{image[2]} ({error})") from error
    return {name: tuple(shape.tolist()) for name, shape in zip(names, found, strict=True)}


def _leading_to_the_end(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that serving runs: where a graph gives logits beside the mask, those that lead to the mask."""
    outputs = {output.name for output in graph.output}
    wanted = {MASK} if MASK in outputs else outputs
    return leading_to(graph.node, wanted)
