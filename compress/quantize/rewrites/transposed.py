"""Transposed convolutions as 1x1 convolutions whose outputs are dealt out."""

import numpy as np
import onnx
from onnx import helper

from compress.quantize.rewrites.edit import Editor, suffixed
from export.latency.graph import attributes

_DEALT = "_dealt"


def transposed_as_convolution(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Transposed convolutions whose kernel is as wide as their stride, each as a 1x1 convolution and DepthToSpace.

    Their outputs do not overlap, so every output pixel is one product, and the two forms are equal; the runtime has
    integer kernels for the second alone. None where there is no such layer: with padding, dilation, groups, or weights
    that are not in the graph, it stays as it is. `model` is left as it was.
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
    """All outputs of a place side by side as channels, the place in the kernel slowest, and then dealt out."""
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
