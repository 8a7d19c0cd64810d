"""Helpers for ONNX graphs, none of which changes the graph that it is given."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.graph import attributes, copied, leading_to
from export.images import U8
from export.runtime import LOGITS, tensors

SIZES = ("Shape", "Size")
"""They read no value, whatever the tensor holds."""
_KEEPS_SIZES = (
    *("Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Div", "Floor", "Gather", "Identity", "Max", "Min", "Mod", "Mul"),
    *("Neg", "Pow", "Range", "ReduceProd", "ReduceSum", "Reshape", "Round", "Slice", "Split", "Sqrt", "Squeeze", "Sub"),
    *("Unsqueeze", "Where"),
)
"""What these make of sizes may be as large as they are; others take their values from elsewhere (Resize, Expand)."""
_COMPUTES_WITH_ALL = ("Add", "Mul", "Concat", "MatMul", "Gemm")
"""Operators whose inputs are all values; others read where to and how large from some of them."""
_OF_A_NORM = re.compile(r"_inlfunc_\w*Normalization_")
"""How the runtime begins the names inside a norm that the standard defines by other operators."""


def stored(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_tensors(model: onnx.ModelProto, new: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy of `model` with new values in some initializers, which keep their shapes."""
    copy = copied(model)
    for tensor in copy.graph.initializer:
        if tensor.name in new:
            array = np.asarray(new[tensor.name].reshape(tuple(tensor.dims)), order="C")
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


def logits_of(model: onnx.ModelProto) -> str:
    """The tensor whose largest value is a pixel's class: what ArgMax reads, or what a graph without a mask gives."""
    return next((str(node.input[0]) for node in model.graph.node if node.op_type == "ArgMax"), LOGITS)


def has_classes_last(model: onnx.ModelProto) -> bool:
    """Whether the tensor that `logits_of` names is NHWK: the runtime's fusions remove the Transpose before ArgMax where
    the last layer has its channels last."""
    return any(node.op_type == "ArgMax" and attributes(node)["axis"] in (-1, 3) for node in model.graph.node)


def is_of_a_norm(node: onnx.NodeProto) -> bool:
    """Whether `node` is part of what the runtime has put in the place of a norm that it has no kernel for."""
    return any(_OF_A_NORM.match(name) for name in (*node.input, *node.output))


def on_sizes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that compute with sizes of tensors, alone or together with maps. Rounded to 8 bits such a number would
    be clipped for every image that is larger than those of the calibration."""
    constants, sizes, found = {tensor.name for tensor in model.graph.initializer}, set[str](), []
    for node in model.graph.node:
        read = [name for name in node.input if name]
        if node.op_type in SIZES:
            sizes.update(node.output)
        elif constants.issuperset(read):
            constants.update(node.output)
        elif node.op_type in _KEEPS_SIZES and constants.union(sizes).issuperset(read):
            sizes.update(node.output)
            found.append(node)
        elif node.op_type in _COMPUTES_WITH_ALL and not sizes.isdisjoint(read):
            found.append(node)
    return found


def is_transposed_in_groups(node: onnx.NodeProto) -> bool:
    """Whether `node` is a transposed convolution whose channels are in groups."""
    return node.op_type == "ConvTranspose" and bool(attributes(node).get("group", 1) > 1)


def channels_of(model: onnx.ModelProto) -> dict[str, int]:
    """How many channels every map of `model` has, NCHW; 0 where that is not known."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in [*inferred.value_info, *inferred.input]}
    return {name: shape[1].dim_value for name, shape in shapes.items() if len(shape) == 4}


def tapped(model: onnx.ModelProto, names: Sequence[str]) -> Callable[[U8], list[NDArray[np.float32]]]:
    """A function from an image HWC to the tensors `names` of `model`, run as written and no further than these.

    Without names nothing is run, because the runtime takes no graph without a node.
    """
    if not names:
        return lambda _: []
    cut = copied(model)
    del cut.graph.node[:], cut.graph.output[:]
    cut.graph.node.extend(leading_to(model.graph.node, names))
    cut.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return tensors(cut.SerializeToString(), names)
