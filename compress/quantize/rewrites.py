"""The float graph in another form that gives the same answers and that INT8 runs faster."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.latency.graph import attributes

_DEALT = "_dealt"
_POOLED = "_pooled"


def transposed_as_convolution(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Transposed convolutions whose kernel is as wide as their stride, each as a 1x1 convolution and DepthToSpace.

    Their outputs do not overlap, so every output pixel is one product, and the two forms are equal; the runtime has
    integer kernels for the second alone. None where there is no such layer: with padding, dilation, groups, or weights
    that are not in the graph, it stays as it is. `model` is left as it was.
    """
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fitting = [node for node in model.graph.node if node.op_type == "ConvTranspose" and _fits(node, weights)]
    if not fitting:
        return None
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    names = {node.output[0] for node in fitting}
    nodes = list(rewritten.graph.node)
    del rewritten.graph.node[:]
    for node in nodes:
        rewritten.graph.node.extend(_dealt(node, weights, rewritten.graph) if node.output[0] in names else [node])
    _drop_unread(rewritten.graph)
    del rewritten.graph.value_info[:]
    return rewritten


def means_as_pooling(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Means over height and width, each as GlobalAveragePool: the runtime has an integer kernel for the second alone.

    None where there is no such mean. `model` is left as it was.
    """
    constants = _constants(model.graph)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*inferred.value_info, *inferred.output]}
    fitting = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "ReduceMean"
        and len(node.input) == 2
        and ranks.get(node.input[0]) == 4
        and {axis % 4 for axis in constants.get(node.input[1], np.array([])).tolist()} == {2, 3}
    }
    if not fitting:
        return None
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    nodes = list(rewritten.graph.node)
    del rewritten.graph.node[:]
    for node in nodes:
        rewritten.graph.node.extend(_pooled(node) if node.output[0] in fitting else [node])
    _drop_unread(rewritten.graph)
    return rewritten


def _pooled(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if attributes(node).get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", node.input[:1], list(node.output), name=node.name)]
    between = node.output[0] + _POOLED
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [between], name=node.name),
        helper.make_node("Flatten", [between], list(node.output), name=node.name + _POOLED),
    ]


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        value = attributes(node).get("value") if node.op_type == "Constant" else None
        if value is not None:
            stored[node.output[0]] = numpy_helper.to_array(value)
    return stored


def _fits(node: onnx.NodeProto, weights: Mapping[str, NDArray[np.float32]]) -> bool:
    given = attributes(node)
    if any(name not in weights for name in node.input[1:] if name) or weights[node.input[1]].ndim != 4:
        return False
    kernel = list(weights[node.input[1]].shape[2:])
    return (
        kernel[0] == kernel[1]
        and list(given.get("strides") or (1, 1)) == kernel
        and set(given.get("dilations") or (1,)) == {1}
        and given.get("group", 1) == 1
        and not any(given.get("pads") or ())
        and not any(given.get("output_padding") or ())
        and not given.get("output_shape")
        and given.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _dealt(
    node: onnx.NodeProto, weights: Mapping[str, NDArray[np.float32]], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """All outputs of a place side by side as channels, the place in the kernel slowest, and then dealt out."""
    weight = weights[node.input[1]]  # [in, out, kernel, kernel]
    width, kernel = weight.shape[1:3]
    as_1x1 = weight.transpose(2, 3, 1, 0).reshape(kernel * kernel * width, -1, 1, 1)
    inputs = [node.input[0], _added(graph, node.input[1], as_1x1)]
    if len(node.input) == 3 and node.input[2]:
        inputs.append(_added(graph, node.input[2], np.tile(weights[node.input[2]], kernel * kernel)))
    between = node.output[0] + _DEALT
    return [
        helper.make_node("Conv", inputs, [between], name=node.name, kernel_shape=[1, 1]),
        helper.make_node(
            "DepthToSpace", [between], list(node.output), name=node.name + _DEALT, blocksize=kernel, mode="DCR"
        ),
    ]


def _added(graph: onnx.GraphProto, name: str, array: NDArray[np.float32]) -> str:
    """A new initializer beside `name`, which others may still read, named so that the layer is known by it."""
    stem, dot, kind = name.rpartition(".")
    new = f"{stem}{_DEALT}{dot}{kind}"
    if new not in {tensor.name for tensor in graph.initializer}:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), new))
    return new


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


REWRITES: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto | None]] = {
    "transposed convolutions as 1x1 convolutions and DepthToSpace": transposed_as_convolution,
    "means over height and width as GlobalAveragePool": means_as_pooling,
}
"""Each is kept where it measures faster."""
