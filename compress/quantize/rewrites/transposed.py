"""Transposed convolutions as 1x1 convolutions whose outputs are rearranged into pixels."""

import numpy as np
import onnx
from onnx import helper

from compress.quantize.rewrites.edit import Editor, suffixed
from export.graph import attributes

_DEALT = "_dealt"


def transposed_as_convolution(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """`model` with a 1x1 convolution and DepthToSpace for each transposed convolution whose kernel equals its stride.

    Their outputs do not overlap, so every output pixel is one product, and the two forms are equal; only the second has
    integer kernels in the runtime. A layer with padding, dilation, groups, or weights that are not in the graph stays
    as it is. None where no layer fits. `model` itself is not changed.
    """
    editor = Editor(model)
    fitting = [node for node in editor.nodes if node.op_type == "ConvTranspose" and _fits(editor, node)]
    for node in fitting:
        editor.replace(node, _dealt(editor, node))
    return editor.done() if fitting else None


def _fits(editor: Editor, node: onnx.NodeProto) -> bool:
    given = attributes(node)
    weight = editor.constants.get(node.input[1])
    if weight is None or weight.ndim != 4 or any(name not in editor.constants for name in node.input[2:] if name):
        return False
    kernel = list(weight.shape[2:])
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


def _dealt(editor: Editor, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A convolution to all outputs of a place as channels, the place in the kernel slowest, and DepthToSpace."""
    weight = editor.constants[node.input[1]]  # [in, out, kernel, kernel]
    width, kernel = weight.shape[1:3]
    as_1x1 = weight.transpose(2, 3, 1, 0).reshape(kernel * kernel * width, -1, 1, 1)
    inputs = [node.input[0], editor.add(as_1x1, suffixed(node.input[1], _DEALT))]
    if len(node.input) == 3 and node.input[2]:
        bias = np.tile(editor.constants[node.input[2]], kernel * kernel)
        inputs.append(editor.add(bias, suffixed(node.input[2], _DEALT)))
    between = node.output[0] + _DEALT
    return [
        helper.make_node("Conv", inputs, [between], name=node.name, kernel_shape=[1, 1]),
        helper.make_node(
            "DepthToSpace", [between], list(node.output), name=node.name + _DEALT, blocksize=kernel, mode="DCR"
        ),
    ]
