"""Means over a map as poolings."""

import numpy as np
import onnx
from onnx import helper

from compress.quantize.rewrites.edit import Editor
from export.graph import attributes

_POOLED = "_pooled"


def means_as_pooling(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """`model` with means over height and width as GlobalAveragePool, which alone has an integer kernel.

    None where there is no such mean. `model` itself is not changed.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*inferred.value_info, *inferred.output]}
    editor = Editor(model)
    fitting = [
        node
        for node in editor.nodes
        if node.op_type == "ReduceMean"
        and len(node.input) == 2
        and ranks.get(node.input[0]) == 4
        and {axis % 4 for axis in editor.constants.get(node.input[1], np.array([])).tolist()} == {2, 3}
    ]
    for node in fitting:
        editor.replace(node, _pooled(node))
    return editor.done() if fitting else None


def _pooled(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if attributes(node).get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", node.input[:1], list(node.output), name=node.name)]
    between = node.output[0] + _POOLED
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [between], name=node.name),
        helper.make_node("Flatten", [between], list(node.output), name=node.name + _POOLED),
    ]
