"""A convolution of an INT8 graph with its Q/DQ pairs: read it, and put another in its place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from compress.quantize.rewrites.edit import Array, Editor
from export.graph import attributes

PLAIN = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}


@dataclass(frozen=True)
class IntegerConv:
    """A convolution between integers whose weights are stored."""

    node: onnx.NodeProto
    image: onnx.NodeProto
    """The node that dequantizes the map that it reads."""
    quantize: onnx.NodeProto
    """The node that quantizes its result, and alone reads it."""
    weight: Array
    """int8 [out, in, height, width]"""
    weight_scale: Array
    """[out]"""
    zero_point: int
    """Of all weights."""
    bias: Array | None
    """int32 [out]"""
    bias_scale: Array | None
    pads: tuple[int, ...]
    """Top, left, bottom, right."""
    strides: tuple[int, ...]

    @property
    def keeps_columns(self) -> bool:
        """Whether as many columns come out as go in."""
        return self.strides == (1, 1) and self.pads[1] + self.pads[3] == self.weight.shape[3] - 1


def integer_convs(editor: Editor) -> Iterator[IntegerConv]:
    """The integer convolutions without groups or dilation."""
    for node in editor.nodes:
        found = _integer_conv(editor, node) if node.op_type == "Conv" else None
        if found is not None:
            yield found


def put(editor: Editor, conv: IntegerConv, form: IntegerConv, suffix: str) -> None:
    """Put the tensors of `form` in the place of those of `conv`, at its node."""
    node = conv.node
    name = f"{node.name}/{suffix}"
    rows = len(form.weight)
    inputs = [
        node.input[0],
        _dequantized(editor, node.input[1], (form.weight, form.weight_scale, _filled(rows, form.zero_point)), name),
    ]
    if form.bias is not None and form.bias_scale is not None:
        stored = (form.bias, form.bias_scale, np.zeros(rows, np.int32))
        inputs.append(_dequantized(editor, node.input[2], stored, name))
    node.input[:] = inputs
    del node.attribute[:]
    node.attribute.extend(
        helper.make_attribute(key, list(value))
        for key, value in (("kernel_shape", form.weight.shape[2:]), ("pads", form.pads), ("strides", form.strides))
    )


def repeated(conv: IntegerConv, weight: Array, times: int) -> IntegerConv:
    """`conv` with `weight`, which has its outputs `times` times, one set after the other, at the same scales."""
    return replace(
        conv,
        weight=weight,
        weight_scale=np.tile(conv.weight_scale, times),
        bias=None if conv.bias is None else np.tile(conv.bias, times),
        bias_scale=None if conv.bias_scale is None else np.tile(conv.bias_scale, times),
    )


def _integer_conv(editor: Editor, node: onnx.NodeProto) -> IntegerConv | None:
    given = {**PLAIN, **attributes(node)}
    image, weight = (_dequantizer(editor, name) for name in node.input[:2])
    has_bias = len(node.input) == 3 and bool(node.input[2])
    bias = _dequantizer(editor, node.input[2]) if has_bias else None
    quantize = editor.only_reader(node.output[0])
    if (
        image is None
        or weight is None
        or (has_bias and bias is None)
        or quantize is None
        or quantize.op_type != "QuantizeLinear"
        or given.get("group", 1) != 1
        or set(given["dilations"]) != {1}
        or given.get("auto_pad", "NOTSET") != "NOTSET"
    ):
        return None
    of_weight = _stored(editor, weight)
    of_bias = _stored(editor, bias) if bias is not None else ()
    if of_weight is None or of_bias is None or of_weight[0].dtype != np.int8 or of_weight[0].ndim != 4:
        return None
    rows = len(of_weight[0])
    if attributes(weight).get("axis", 1) != 0 and of_weight[1].size > 1:
        return None
    zeros = set(np.atleast_1d(of_weight[2]).tolist())
    if len(zeros) != 1:
        return None
    return IntegerConv(
        node,
        image,
        quantize,
        of_weight[0],
        _spread(of_weight[1], rows),
        zeros.pop(),
        of_bias[0] if of_bias else None,
        _spread(of_bias[1], rows) if of_bias else None,
        tuple(given["pads"]),
        tuple(given["strides"]),
    )


def _dequantizer(editor: Editor, tensor: str) -> onnx.NodeProto | None:
    node = editor.maker(tensor)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _stored(editor: Editor, dequantize: onnx.NodeProto) -> Sequence[Array] | None:
    """Integers, scale and zero point."""
    found = [editor.constants.get(name) for name in dequantize.input]
    known = [array for array in found if array is not None]
    return known if len(known) == len(found) == 3 else None


def _spread(scale: Array, rows: int) -> Array:
    return np.broadcast_to(scale, (rows,)).copy()


def _filled(rows: int, zero_point: int) -> Array:
    return np.full(rows, zero_point, np.int8)


def _dequantized(editor: Editor, tensor: str, stored: Sequence[Array], name: str) -> str:
    """Dequantize `stored` for one reader of `tensor`, under the old names, which name the layer, where no other node
    reads them; return the tensor."""
    node = editor.maker(tensor)
    assert node is not None
    if len(editor.readers(tensor)) > 1:
        target = f"{name}/{tensor}"
        new = helper.make_node("DequantizeLinear", list(node.input), [target], f"{name}/{node.name}")
        editor.insert_before(node, [new])
        node, tensor = new, target
    for place, array in enumerate(stored):
        old = node.input[place]
        if len(editor.readers(old)) > 1:
            node.input[place] = editor.add(array, f"{old}/{name}")
        else:
            editor.change(old, array)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 0))
    return tensor
