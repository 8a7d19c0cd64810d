"""What TensorRT wants of a graph besides signed integers.

Its type kUINT8 is for inputs and outputs of a network, and converts from and to floats alone. It fuses a convolution
with the activation behind it where no pair of QuantizeLinear and DequantizeLinear stands between the two. Its ArgMax
takes no integers, so a pair before it would only round the logits. Source: NVIDIA TensorRT documentation,
`DataType`, "Explicit Quantization" and the operators' reference.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from compress.quantize.graph import SIZES
from compress.quantize.rewrites.edit import Editor
from export.errors import WorkFailedError
from export.graph import attributes
from export.runtime import IMAGE, MASK

_IN_FLOAT = "_in_float"
_IN_ONE_KERNEL_OR_FLOAT = ("Relu", "Clip", "ArgMax")


def with_float_ends(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the image cast to float before all else, and the mask cast from floats; the same answers.

    `model`, which is not changed, begins with a Transpose and a Cast, as `export.to_onnx` writes it. Raises
    WorkFailedError for one that does not.
    """
    editor = Editor(model)
    _cast_first(editor)
    if MASK in editor.outputs:
        _mask_of_floats(editor)
    return editor.done()


def _cast_first(editor: Editor) -> None:
    """Let a Cast alone read the image, before the Transpose if there is one; what reads a size reads that of the
    floats."""
    first = _only_of_values(editor, IMAGE)
    if first.op_type == "Cast":
        _read_instead(editor, IMAGE, first.output[0])
        return
    cast = _only_of_values(editor, first.output[0])
    if (first.op_type, cast.op_type) != ("Transpose", "Cast"):
        raise WorkFailedError(f"the image is read by {first.op_type} and {cast.op_type}, not by Transpose and Cast")
    between, result = f"{IMAGE}{_IN_FLOAT}", cast.output[0]
    perm = attributes(first)["perm"]
    _read_instead(editor, IMAGE, between)
    _read_instead(editor, first.output[0], result)
    editor.replace(first, [])
    editor.replace(cast, [])
    editor.nodes[:0] = [
        helper.make_node("Cast", [IMAGE], [between], cast.name, to=TensorProto.FLOAT),
        helper.make_node("Transpose", [between], [result], first.name, perm=perm),
    ]


def _only_of_values(editor: Editor, tensor: str) -> onnx.NodeProto:
    """The node that alone reads the values of `tensor`."""
    found = [node for node in editor.readers(tensor) if node.op_type not in SIZES]
    if len(found) != 1:
        read = ", ".join(node.op_type for node in found) or "nothing"
        raise WorkFailedError(f"{tensor} is read by {read}; a graph for TensorRT begins with one Cast of the image")
    return found[0]


def _read_instead(editor: Editor, tensor: str, same_shape: str) -> None:
    for node in editor.readers(tensor):
        if node.op_type in SIZES:
            node.input[0] = same_shape


def _mask_of_floats(editor: Editor) -> None:
    """Make the mask of floats: it is a Cast of a class's index, or that index looked up in a table of uint8."""
    last = editor.maker(MASK)
    assert last is not None
    floats = f"{MASK}{_IN_FLOAT}"
    if last.op_type == "Cast":
        first = helper.make_node("Cast", [last.input[0]], [floats], f"{last.name}{_IN_FLOAT}", to=TensorProto.FLOAT)
    else:
        table = editor.add(editor.constants[last.input[0]].astype(np.float32), f"{last.input[0]}{_IN_FLOAT}")
        axis = attributes(last).get("axis", 0)
        first = helper.make_node("Gather", [table, last.input[1]], [floats], f"{last.name}{_IN_FLOAT}", axis=axis)
    editor.replace(last, [first, helper.make_node("Cast", [floats], [MASK], last.name, to=TensorProto.UINT8)])


def without_needless_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the Q/DQ pairs before Relu, Clip and ArgMax: values are rounded once, behind these, or never."""
    editor = Editor(model)
    for node in editor.nodes:
        if node.op_type in _IN_ONE_KERNEL_OR_FLOAT:
            node.input[0] = _before_pair(editor, node.input[0])
    return editor.done()


def _before_pair(editor: Editor, tensor: str) -> str:
    """What is before the Q/DQ pair that makes `tensor`, if nothing else reads any of it; else `tensor` itself."""
    found = tensor
    for wanted in ("DequantizeLinear", "QuantizeLinear"):
        maker = editor.maker(found)
        if maker is None or maker.op_type != wanted or editor.only_reader(found) is None:
            return tensor
        found = maker.input[0]
    return found if editor.only_reader(found) is not None else tensor
